from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lockstep.server.scheduler import (
    Amount,
    Node,
    Request,
    amount_of_worker,
    plan,
    request_of,
    units,
    why_it_never_fits,
)
from lockstep.v1.job_spec_pb2 import ResourcesSpec

amounts = st.builds(Amount, st.integers(0, 80_000), st.sampled_from([0, 10_000, 20_000]))
workers = st.builds(Amount, st.integers(1, 30_000), st.sampled_from([0, 10_000]))
requests = st.lists(st.builds(Request, st.uuids().map(str), st.integers(1, 9), workers), max_size=8)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Node], dict[str, Amount]]:
    nodes = [Node(f"n{i}", amount, amount) for i, amount in enumerate(draw(st.lists(amounts, max_size=5)))]
    held = {node.node_id: draw(amounts) for node in nodes if draw(st.booleans())}
    return nodes, held


def node(name: str, cpus: float, gpus: float = 0) -> Node:
    amount = Amount(units(cpus), units(gpus))
    return Node(name, amount, amount)


@given(requests, clusters())
def test_no_node_is_ever_filled_over_its_capacity(
    queue: list[Request], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, held = cluster
    each = {request.job_id: request.each for request in queue}
    taken: dict[str, Amount] = {}
    for placement in plan(queue, nodes, held):
        for node_id in placement.node_ids:
            taken[node_id] = taken.get(node_id, Amount()) + each[placement.job_id]
    for there in nodes:
        if there.node_id in taken:
            total = taken[there.node_id] + held.get(there.node_id, Amount())
            assert total.cpu <= there.usable.cpu
            part = taken[there.node_id].gpu
            assert part == 0 or part + held.get(there.node_id, Amount()).gpu <= there.usable.gpu


@given(requests, clusters())
def test_a_gang_is_placed_whole_and_nobody_overtakes_the_head(
    queue: list[Request], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, held = cluster
    placements = plan(queue, nodes, held)
    assert [p.job_id for p in placements] == [request.job_id for request in queue[: len(placements)]]
    for placement, request in zip(placements, queue, strict=False):
        assert len(placement.node_ids) == request.workers
        assert set(placement.node_ids) <= {there.node_id for there in nodes}


@given(requests, clusters())
def test_the_first_job_that_is_left_would_not_have_fitted(
    queue: list[Request], cluster: tuple[list[Node], dict[str, Amount]]
) -> None:
    nodes, held = cluster
    placements = plan(queue, nodes, held)
    if len(placements) == len(queue):
        return
    each = {request.job_id: request.each for request in queue}
    free = {there.node_id: there.usable - held.get(there.node_id, Amount()) for there in nodes}
    for placement in placements:
        for node_id, count in Counter(placement.node_ids).items():
            free[node_id] = free[node_id] - each[placement.job_id] * count
    left = queue[len(placements)]
    assert sum(amount.holds(left.each) for amount in free.values()) < left.workers


def test_shares_of_a_cpu_add_up_exactly() -> None:
    resources = ResourcesSpec(workers=10, cpus_per_worker=0.1)
    assert len(plan([request_of("j", resources)], [node("a", 1)], {})) == 1
    resources = ResourcesSpec(workers=3, cpus_per_worker=1 / 3)
    assert plan([request_of("j", resources)], [node("a", 1)], {}) == [], "a third is rounded up"


def test_a_gang_stays_on_one_node_when_one_can_take_it() -> None:
    resources = ResourcesSpec(workers=2, cpus_per_worker=1)
    [placement] = plan([request_of("j", resources)], [node("a", 8), node("b", 2), node("c", 1)], {})
    assert placement.node_ids == ("b", "b")


def test_a_gang_that_fits_on_no_node_is_spread() -> None:
    resources = ResourcesSpec(workers=5, cpus_per_worker=1)
    [placement] = plan([request_of("j", resources)], [node("a", 2), node("b", 2), node("c", 1)], {})
    assert Counter(placement.node_ids) == {"a": 2, "b": 2, "c": 1}


def test_what_can_never_fit_is_said_with_the_numbers() -> None:
    resources = ResourcesSpec(workers=8, cpus_per_worker=1)
    why = why_it_never_fits(resources, [node("a", 2)])
    assert why is not None
    assert "8 workers x 1 CPU; the cluster has 2 CPUs and 0 GPUs on 1 node" in why
    assert why_it_never_fits(ResourcesSpec(workers=2, cpus_per_worker=1), [node("a", 2)]) is None


def test_cpus_on_two_nodes_do_not_make_a_worker() -> None:
    assert why_it_never_fits(ResourcesSpec(workers=1, cpus_per_worker=3), [node("a", 2), node("b", 2)]) is not None


def test_gpus_are_counted_too() -> None:
    resources = ResourcesSpec(workers=2, cpus_per_worker=1, gpus_per_worker=1)
    why = why_it_never_fits(resources, [node("a", 8, 1)])
    assert why is not None
    assert "1 CPU and 1 GPU" in why
    assert amount_of_worker(resources) == Amount(10_000, 10_000)
