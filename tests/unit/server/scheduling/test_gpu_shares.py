"""Who starts where workers share GPUs."""

from __future__ import annotations

from lockstep.server.scheduling.scheduler import (
    Amount,
    Node,
    Placement,
    amount_of_worker,
    plan,
    request_of,
    why_it_never_fits,
)
from lockstep.v1.job_spec_pb2 import ResourcesSpec
from tests.unit.server.scheduling.test_scheduler import node


def share_of_a_gpu(share: float, workers: int = 1) -> ResourcesSpec:
    return ResourcesSpec(workers=workers, min_workers=workers, cpus_per_worker=0.1, gpus_per_worker=1, gpu_share=share)


def test_workers_share_gpus_up_to_the_whole_of_each() -> None:
    assert amount_of_worker(share_of_a_gpu(0.25)) == Amount(1_000, 2_500)
    eight, nine = (request_of("j", share_of_a_gpu(0.25, workers)) for workers in (8, 9))
    assert plan([eight], [], [node("a", 8, 2)], {}).placements == (Placement("j", ("a",) * 8),)
    assert plan([nine], [], [node("a", 8, 2)], {}).placements == ()


def test_what_is_left_of_two_gpus_does_not_make_a_share() -> None:
    three = request_of("j", share_of_a_gpu(0.6, 3))
    assert plan([three], [], [node("a", 8, 2)], {}).placements == (), "1.8 of 2 GPUs, of which two take one each"
    assert plan([three], [], [node("a", 8, 2), node("b", 8, 1)], {}).placements == (Placement("j", ("a", "a", "b")),)


def test_who_wants_a_whole_gpu_waits_for_one_that_nobody_shares() -> None:
    whole, half = (request_of("j", share_of_a_gpu(share)) for share in (1.0, 0.5))
    nodes, held = [node("a", 8, 2)], {"a": Amount(2_000, 7_500)}
    spread = {"a": (5_000, 2_500)}
    assert plan([whole], [], nodes, held, shares=spread).placements == ()
    assert plan([half], [], nodes, held, shares=spread).placements == (Placement("j", ("a",)),)
    assert plan([whole], [], nodes, held, shares={"a": (7_500,)}).placements == (Placement("j", ("a",)),)


def test_a_whole_gpu_that_is_held_is_not_shared() -> None:
    held = {"a": Amount(1_000, 12_500)}
    fits = [
        plan([request_of("j", share_of_a_gpu(0.25, workers))], [], [node("a", 8, 2)], held, shares={"a": (2_500,)})
        for workers in (3, 4)
    ]
    assert [len(decided.placements) for decided in fits] == [1, 0]


def test_a_share_that_no_gpu_has_is_said_with_the_numbers() -> None:
    assert why_it_never_fits(share_of_a_gpu(0.6, 3), [node("a", 8, 2)]) == (
        "the job asks for 3 workers x 0.1 CPUs and 0.6 GPUs; the cluster has 8 CPUs and 2 GPUs on 1 node; "
        "lower resources.min_workers to 2, or what each worker takes, or use a larger cluster"
    )


def test_no_more_is_shared_than_others_leave() -> None:
    half, two = (request_of("j", share_of_a_gpu(0.5, workers)) for workers in (1, 2))
    there = Node("a", Amount(80_000, 8_000), Amount(80_000, 10_000))
    assert plan([half], [], [there], {"a": Amount(1_000, 5_000)}, shares={"a": (5_000,)}).placements == ()
    there = Node("a", Amount(80_000, 15_000), Amount(80_000, 20_000))
    held, shares = {"a": Amount(2_000, 10_000)}, {"a": (5_000, 5_000)}
    assert plan([half], [], [there], held, shares=shares).placements == (Placement("j", ("a",)),)
    assert plan([two], [], [there], held, shares=shares).placements == ()


def test_what_others_leave_of_a_gpu_is_shared() -> None:
    half, most = (request_of("j", share_of_a_gpu(share)) for share in (0.5, 0.6))
    there = Node("a", Amount(80_000, 5_000), Amount(80_000, 10_000))
    assert plan([half], [], [there], {}).placements == (Placement("j", ("a",)),)
    assert plan([most], [], [there], {}).placements == ()


def test_three_thirds_are_a_gpu_as_ray_counts_them() -> None:
    third = share_of_a_gpu(1 / 3, 3)
    assert amount_of_worker(third).gpu == 3_333
    assert why_it_never_fits(third, [node("a", 8, 1)]) is None
    held, shares = {"a": Amount(4_000, 4 * 3_333)}, {"a": (9_999, 3_333)}
    assert plan([request_of("j", third)], [], [node("a", 8, 2)], held, shares=shares).placements == ()
    two = request_of("j", share_of_a_gpu(1 / 3, 2))
    assert plan([two], [], [node("a", 8, 2)], held, shares=shares).placements == (Placement("j", ("a", "a")),)
