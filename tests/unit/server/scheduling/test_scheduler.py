from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lockstep.contract.spec.resources import UNITS
from lockstep.server.scheduling.scheduler import (
    Amount,
    Node,
    Placement,
    Request,
    Resize,
    Running,
    amount_of_worker,
    free_of,
    plan,
    request_of,
    units,
    why_it_never_fits,
)
from lockstep.v1.job_spec_pb2 import ResourcesSpec

amounts = st.builds(Amount, st.integers(0, 80_000), st.sampled_from([0, 10_000, 20_000]))
workers = st.builds(Amount, st.integers(1, 30_000), st.sampled_from([0, 2_500, 4_000, 10_000]))


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    found = []
    for number in range(draw(st.integers(0, 8))):
        most = draw(st.integers(1, 9))
        least = draw(st.integers(1, most))
        found.append(Request(f"q{number}", most, least, draw(workers), draw(st.integers(0, 9)) == 0))
    return found


requests = request_lists()


@st.composite
def gang_lists(draw: st.DrawFn) -> list[Running]:
    places = st.lists(st.sampled_from(["n0", "n1", "n2", "n3", "n4"]), min_size=1, max_size=5).map(tuple)
    # Those that share GPUs hold of them what some test says by itself.
    whole = workers.filter(lambda each: each.gpu % UNITS == 0)
    return [
        Running(f"g{number}", draw(places), draw(st.integers(1, 9)), draw(whole))
        for number in range(draw(st.integers(0, 4)))
    ]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Node], dict[str, Amount]]:
    nodes = [Node(f"n{i}", amount, amount) for i, amount in enumerate(draw(st.lists(amounts, max_size=5)))]
    held = {node.node_id: draw(amounts) for node in nodes if draw(st.booleans())}
    return nodes, held


def node(name: str, cpus: float, gpus: float = 0) -> Node:
    amount = Amount(units(cpus), units(gpus))
    return Node(name, amount, amount)


def held_with(gangs: list[Running], held: dict[str, Amount]) -> dict[str, Amount]:
    total = dict(held)
    for gang in gangs:
        for node_id in gang.node_ids:
            total[node_id] = total.get(node_id, Amount()) + gang.each
    return total


def gpus_as_ray_gives_them(parts: list[int], gpus: int) -> bool:
    """Whether each worker, one after another, gets its part, of the fullest GPU that has room."""
    free = [UNITS] * gpus
    for part in parts:
        room = [there for there in free if there >= min(part, UNITS)]
        if part and not room:
            return False
        if part:
            free.remove(min(room))
            free.append(min(room) - part)
    return True


@given(requests, gang_lists(), clusters())
def test_no_node_is_ever_filled_over_its_capacity(
    queue: list[Request], gangs: list[Running], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, others = cluster
    held = held_with(gangs, others)
    each = {request.job_id: request.each for request in queue} | {gang.job_id: gang.each for gang in gangs}
    before = {gang.job_id: Counter(gang.node_ids) for gang in gangs}
    decided = plan(queue, gangs, nodes, held)
    taken: dict[str, Amount] = {}
    shares: dict[str, list[int]] = {}
    decisions: list[Any] = [*decided.placements, *decided.resizes]
    for decision in decisions:
        # What a gang gives up is free only when it is gone.
        for node_id in (Counter(decision.node_ids) - before.get(decision.job_id, Counter())).elements():
            taken[node_id] = taken.get(node_id, Amount()) + each[decision.job_id]
            shares.setdefault(node_id, []).append(each[decision.job_id].gpu)
    for there in nodes:
        gpus = (there.usable - held.get(there.node_id, Amount())).gpu // UNITS
        assert not any(shares.get(there.node_id, ())) or gpus_as_ray_gives_them(shares[there.node_id], gpus)
        if there.node_id in taken:
            part = taken[there.node_id]
            assert part.cpu + held.get(there.node_id, Amount()).cpu <= there.usable.cpu
            assert part.gpu == 0 or part.gpu + held.get(there.node_id, Amount()).gpu <= there.usable.gpu
    assert set(taken) <= {there.node_id for there in nodes}


@given(requests, clusters())
def test_nobody_overtakes_the_head_and_each_gang_has_between_its_fewest_and_its_most_workers(
    queue: list[Request], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, held = cluster
    placements = plan(queue, [], nodes, held).placements
    ready = [request for request in queue if not request.is_delayed]
    assert [p.job_id for p in placements] == [request.job_id for request in ready[: len(placements)]]
    for placement, request in zip(placements, ready, strict=False):
        assert request.min_workers <= len(placement.node_ids) <= request.workers


@given(requests, clusters())
def test_the_first_job_that_is_left_would_not_have_fitted_and_who_got_fewer_left_no_room(
    queue: list[Request], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    queue = [replace(request, is_delayed=False) for request in queue]
    nodes, held = cluster
    placements = plan(queue, [], nodes, held).placements
    free = free_of(nodes, held, {})
    for placement, request in zip(placements, queue, strict=False):
        for node_id in placement.node_ids:
            free[node_id].take(request.each)
        if len(placement.node_ids) < request.workers:
            assert sum(there.holds(request.each) for there in free.values()) == 0
    if len(placements) < len(queue):
        left = queue[len(placements)]
        assert sum(there.holds(left.each) for there in free.values()) < left.min_workers


@given(
    requests,
    gang_lists(),
    clusters(),
    st.dictionaries(st.tuples(st.sampled_from(["n0", "n1", "n2"]), workers), st.integers(1, 5)),
)
def test_warm_workers_change_where_jobs_go_but_neither_who_starts_nor_with_how_many(
    queue: list[Request],
    gangs: list[Running],
    cluster: tuple[list[Node], dict[str, Amount]],
    warm: dict[tuple[str, Amount], int],
) -> None:
    nodes, others = cluster
    queue = [replace(request, each=Amount(10_000)) for request in queue]
    gangs = [replace(gang, each=Amount(10_000)) for gang in gangs]
    held, given_warm = held_with(gangs, others), dict(warm)
    cold, decided = plan(queue, gangs, nodes, held), plan(queue, gangs, nodes, held, warm)
    assert [(p.job_id, len(p.node_ids)) for p in decided.placements] == [
        (p.job_id, len(p.node_ids)) for p in cold.placements
    ]
    assert [r.job_id for r in decided.resizes] == [r.job_id for r in cold.resizes]
    assert warm == given_warm, "what is handed in stays as it is"


@given(gang_lists(), clusters())
def test_a_gang_comes_no_further_than_its_job_wants_and_keeps_the_workers_that_it_may(
    gangs: list[Running], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, others = cluster
    by_job = {gang.job_id: gang for gang in gangs}
    resizes = plan([], gangs, nodes, held_with(gangs, others)).resizes
    assert len({resize.job_id for resize in resizes}) == len(resizes)
    for resize in resizes:
        gang = by_job[resize.job_id]
        if len(gang.node_ids) > gang.workers:
            assert resize.node_ids == gang.node_ids[: gang.workers]
        else:
            assert len(gang.node_ids) < len(resize.node_ids) <= gang.workers
            assert resize.node_ids[: len(gang.node_ids)] == gang.node_ids
    untouched = set(by_job) - {resize.job_id for resize in resizes}
    assert all(len(by_job[job_id].node_ids) <= by_job[job_id].workers for job_id in untouched)


ONE = Amount(10_000)


def test_a_gang_grows_only_when_nobody_waits_and_the_oldest_first() -> None:
    gangs = [Running("old", ("a",), 3, ONE), Running("young", ("a",), 3, ONE)]
    held = held_with(gangs, {})
    nodes = [node("a", 4), node("b", 1)]
    assert plan([], gangs, nodes, held).resizes == (Resize("old", ("a", "a", "a")), Resize("young", ("a", "b")))
    wide = Request("wide", 4, 4, ONE)
    decided = plan([wide], gangs, nodes, held)
    assert (decided.placements, decided.resizes) == ((), ())
    narrow = Request("narrow", 2, 1, ONE)
    decided = plan([narrow], gangs, nodes, held)
    assert decided.placements == (Placement("narrow", ("a", "a")),)
    assert decided.resizes == (Resize("old", ("a", "b")),)


def test_a_gang_does_not_grow_where_its_workers_were_refused() -> None:
    gang = Running("g", ("a",), 3, ONE, refused=frozenset({"b"}))
    nodes, held = [node("a", 1), node("b", 4), node("c", 1)], {"a": ONE}
    assert plan([], [gang], nodes, held).resizes == (Resize("g", ("a", "c")),)
    assert plan([], [gang], nodes[:2], held).resizes == ()


def test_a_gang_shrinks_also_while_somebody_waits_and_gives_up_its_last_workers() -> None:
    gangs = [Running("g", ("a", "b", "a"), 1, ONE)]
    nodes = [node("a", 2), node("b", 1)]
    decided = plan([Request("q", 1, 1, ONE)], gangs, nodes, held_with(gangs, {}))
    assert (decided.placements, decided.resizes) == ((), (Resize("g", ("a",)),))


def test_a_job_that_may_not_start_yet_keeps_its_place_and_its_room() -> None:
    delayed, next_one = Request("first", 2, 2, ONE, is_delayed=True), Request("second", 2, 1, ONE)
    assert plan([delayed, next_one], [], [node("a", 2)], {}).placements == ()
    assert plan([delayed, next_one], [], [node("a", 3)], {}).placements == (Placement("second", ("a",)),)
    gang = Running("g", ("a",), 9, ONE)
    assert plan([delayed], [gang], [node("a", 4)], {"a": ONE}).resizes == (Resize("g", ("a", "a")),)


def test_an_elastic_job_starts_with_what_is_free() -> None:
    resources = ResourcesSpec(workers=4, min_workers=2, cpus_per_worker=1)
    assert plan([request_of("j", resources)], [], [node("a", 1)], {}).placements == ()
    assert plan([request_of("j", resources)], [], [node("a", 1), node("b", 2)], {}).placements == (
        Placement("j", ("b", "b", "a")),
    )


def test_shares_of_a_cpu_add_up_exactly() -> None:
    resources = ResourcesSpec(workers=10, min_workers=10, cpus_per_worker=0.1)
    assert len(plan([request_of("j", resources)], [], [node("a", 1)], {}).placements) == 1
    resources = ResourcesSpec(workers=3, min_workers=3, cpus_per_worker=1 / 3)
    assert plan([request_of("j", resources)], [], [node("a", 1)], {}).placements == (), "a third is rounded up"


def test_a_gang_stays_on_one_node_when_one_can_take_it() -> None:
    resources = ResourcesSpec(workers=2, min_workers=1, cpus_per_worker=1)
    [placement] = plan([request_of("j", resources)], [], [node("a", 8), node("b", 2), node("c", 1)], {}).placements
    assert placement.node_ids == ("b", "b")


def test_a_gang_that_fits_on_no_node_is_spread() -> None:
    resources = ResourcesSpec(workers=5, min_workers=1, cpus_per_worker=1)
    [placement] = plan([request_of("j", resources)], [], [node("a", 2), node("b", 2), node("c", 1)], {}).placements
    assert Counter(placement.node_ids) == {"a": 2, "b": 2, "c": 1}


def test_a_gang_goes_where_most_of_its_workers_are_warm() -> None:
    nodes = [node("a", 2), node("b", 8), node("c", 8)]
    two = Request("j", 2, 1, ONE)
    assert plan([two], [], nodes, {}).placements == (Placement("j", ("a", "a")),), "else to the tightest"
    assert plan([two], [], nodes, {}, {("c", ONE): 1}).placements == (Placement("j", ("c", "c")),)
    assert plan([two], [], nodes, {}, {("b", ONE): 2, ("c", ONE): 1}).placements == (Placement("j", ("b", "b")),)


def test_more_warm_workers_than_a_gang_has_draw_it_no_more() -> None:
    nodes = [node("a", 2), node("b", 8)]
    warm = {("a", ONE): 2, ("b", ONE): 7}
    assert plan([Request("j", 2, 1, ONE)], [], nodes, {}, warm).placements == (Placement("j", ("a", "a")),)


def test_only_warm_workers_of_the_shape_of_the_job_count() -> None:
    nodes = [node("a", 2), node("b", 8)]
    warm = {("b", Amount(20_000)): 1, ("b", Amount(10_000, 10_000)): 1}
    assert plan([Request("j", 1, 1, ONE)], [], nodes, {}, warm).placements == (Placement("j", ("a",)),)


def test_two_jobs_do_not_count_the_same_warm_worker() -> None:
    nodes = [node("a", 1), node("b", 8), node("c", 8)]
    queue = [Request("first", 1, 1, ONE), Request("second", 1, 1, ONE), Request("third", 1, 1, ONE)]
    warm = {("b", ONE): 1, ("c", ONE): 1}
    placements = plan(queue, [], nodes, {}, warm).placements
    assert [placement.node_ids for placement in placements] == [("b",), ("c",), ("a",)]


def test_warm_workers_hold_nothing() -> None:
    wide = Request("wide", 1, 1, Amount(40_000))
    assert plan([wide], [], [node("a", 4)], {}, {("a", ONE): 4}).placements == (Placement("wide", ("a",)),)


def test_a_gang_that_is_spread_goes_to_as_few_nodes_as_without_warm_workers() -> None:
    nodes = [node("a", 3), node("b", 2), node("c", 2)]
    five = Request("j", 5, 5, ONE)
    assert plan([five], [], nodes, {}, {("c", ONE): 2}).placements == (Placement("j", ("a", "a", "a", "c", "c")),)


def test_a_gang_grows_where_it_is_then_where_workers_are_warm() -> None:
    nodes = [node("a", 2), node("b", 8), node("c", 3)]
    gang, held = Running("g", ("a",), 3, ONE), {"a": ONE}
    assert plan([], [gang], nodes, held).resizes == (Resize("g", ("a", "a", "b")),)
    assert plan([], [gang], nodes, held, {("c", ONE): 1}).resizes == (Resize("g", ("a", "a", "c")),)


def test_a_node_whose_warm_workers_are_all_taken_is_no_worse_than_others() -> None:
    nodes = [node("a", 4), node("b", 6)]
    queue = [Request("j", 5, 5, ONE)]  # takes five on b, where one is warm
    gang = Running("g", ("c",), 2, Amount(5_000))
    warm = {("b", ONE): 1, ("b", Amount(5_000)): 1, ("a", Amount(5_000)): 1}
    assert plan(queue, [gang], nodes, {}, warm).resizes == (Resize("g", ("c", "a")),)
    one = Running("g", ("c",), 2, ONE)
    equal = [node("a", 1), node("b", 7)]  # one of the queue takes two on b, where one is warm
    assert plan([Request("j", 2, 2, ONE)], [one], equal, {}, {("b", ONE): 1}).resizes == (Resize("g", ("c", "b")),)


def test_what_can_never_fit_is_said_with_the_numbers() -> None:
    resources = ResourcesSpec(workers=8, min_workers=8, cpus_per_worker=1)
    why = why_it_never_fits(resources, [node("a", 2)])
    assert why is not None
    assert "asks for 8 workers x 1 CPU; the cluster has 2 CPUs and 0 GPUs on 1 node" in why
    assert "lower resources.min_workers to 2, or what each worker takes" in why
    assert why_it_never_fits(ResourcesSpec(workers=2, min_workers=2, cpus_per_worker=1), [node("a", 2)]) is None


def test_a_job_must_fit_with_its_fewest_workers_alone() -> None:
    resources = ResourcesSpec(workers=8, min_workers=3, cpus_per_worker=1)
    assert why_it_never_fits(resources, [node("a", 3)]) is None
    why = why_it_never_fits(resources, [node("a", 2)])
    assert why is not None
    assert "asks for at least 3 workers x 1 CPU; the cluster has 2 CPUs" in why
    assert "lower resources.min_workers to 2" in why


def test_fewer_workers_are_no_hint_where_not_even_one_fits() -> None:
    no_gpus = why_it_never_fits(
        ResourcesSpec(workers=2, min_workers=1, cpus_per_worker=1, gpus_per_worker=1), [node("a", 8)]
    )
    too_wide = why_it_never_fits(ResourcesSpec(workers=2, min_workers=1, cpus_per_worker=9), [node("a", 8)])
    assert no_gpus is not None
    assert too_wide is not None
    assert no_gpus.endswith("set resources.gpus_per_worker to 0 to train on CPUs, or use a cluster with GPUs")
    assert too_wide.endswith("lower what each worker takes, or use larger nodes")
    assert "min_workers" not in no_gpus + too_wide


def test_cpus_on_two_nodes_do_not_make_a_worker() -> None:
    resources = ResourcesSpec(workers=1, min_workers=1, cpus_per_worker=3)
    assert why_it_never_fits(resources, [node("a", 2), node("b", 2)]) is not None


def test_gpus_are_counted_too() -> None:
    resources = ResourcesSpec(workers=2, min_workers=2, cpus_per_worker=1, gpus_per_worker=1)
    why = why_it_never_fits(resources, [node("a", 8, 1)])
    assert why is not None
    assert "1 CPU and 1 GPU" in why
    assert amount_of_worker(resources) == Amount(10_000, 10_000)
