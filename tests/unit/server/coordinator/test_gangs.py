from __future__ import annotations

from collections import Counter
from typing import Any

from lockstep.server.coordinator.gangs import Gang, held_by, shares_of
from lockstep.server.scheduling.scheduler import Amount
from lockstep.v1.internal_service_pb2 import WorkerProcess

ONE = Amount(10_000)


def test_while_an_order_is_not_answered_a_gang_holds_what_it_had_and_what_it_shall_have() -> None:
    gang = Gang(1, ("a", "a", "b"), ONE)
    assert held_by([gang, gang]) == {"a": ONE * 4, "b": ONE * 2}
    gang.resize(("a",))
    assert (gang.revision, gang.node_ids, gang.claimed) == (1, ("a",), Counter({"a": 2, "b": 1}))
    gang.resize(("a", "c", "c"))
    assert (gang.revision, gang.claimed) == (2, Counter({"a": 2, "b": 1, "c": 2}))
    assert gang.has_become(("a", "c", "c"), 3) is None
    assert held_by([gang]) == {"a": ONE, "c": ONE * 2}


def test_what_gangs_hold_can_be_asked_from_a_thread_while_they_come_and_change() -> None:
    holding: dict[int, Gang] = {}

    class Busy(Counter[str]):
        """While it is read, another gang comes."""

        def items(self) -> Any:
            holding[len(holding)] = Gang(1, ("b",), ONE)
            return super().items()

    holding[0] = Gang(1, ("a", "a"), ONE)
    holding[0].claimed = Busy(holding[0].claimed)
    assert held_by(holding.values()) == {"a": ONE * 2}
    read = holding[1].claimed
    holding[1].resize(("c",))
    assert read == Counter({"b": 1}), "who is reading it sees one moment"


def test_a_gang_that_does_not_become_what_it_should_waits_longer_each_time_up_to_a_minute() -> None:
    gang = Gang(1, ("a", "a"), ONE)
    delays = []
    for _ in range(9):
        delays.append(gang.has_become(("a",), 1))
        gang.resize(("a", "a"))
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_only_workers_that_train_end_the_row_of_misses() -> None:
    gang = Gang(1, ("a", "a"), ONE)
    assert gang.has_become(("a",), 1) == 1
    gang.resize(("a", "a"))
    assert gang.has_become(("a", "a"), 1) is None
    assert gang.has_become(("a",), 1) == 2, "the one that was to join did not come to train"
    gang.resize(("a", "a"))
    assert gang.has_become(("a", "a"), 2) is None
    assert gang.has_become(("a",), 1) == 1


def on_gpu(job_id: str, gpu_id: str, attempt: int = 1, node_id: str = "a") -> WorkerProcess:
    return WorkerProcess(job_id=job_id, attempt=attempt, node_id=node_id, gpus=0.25, gpu_ids=[gpu_id])


QUARTER, HALF, WHOLE = Amount(1_000, 2_500), Amount(1_000, 5_000), Amount(1_000, 10_000)


def test_workers_that_are_up_say_which_gpu_they_share() -> None:
    gangs = {("x", 1): Gang(1, ("a", "a", "b"), QUARTER), ("y", 1): Gang(1, ("a",), WHOLE)}
    processes = [on_gpu("x", "1"), on_gpu("x", "0"), on_gpu("x", "0", node_id="b"), on_gpu("y", "2")]
    assert shares_of(gangs, processes) == {"a": (2_500, 2_500), "b": (2_500,)}
    of_another_attempt = [on_gpu("x", "1", attempt=2), on_gpu("z", "1")]
    assert shares_of(gangs, of_another_attempt) == {"a": (5_000,), "b": (2_500,)}


def test_workers_that_are_not_up_are_where_ray_will_put_them() -> None:
    gangs = {("x", 1): Gang(1, ("a",) * 2, QUARTER), ("y", 1): Gang(1, ("a",) * 2, HALF)}
    assert shares_of(gangs, []) == {"a": (10_000, 5_000)}, "one after the other, the fullest that has room"
    other_way_round = {("x", 1): Gang(1, ("a",), Amount(1_000, 6_000)), ("y", 1): Gang(1, ("a",) * 2, HALF)}
    assert shares_of(other_way_round, []) == {"a": (6_000, 10_000)}
    assert shares_of(gangs, [on_gpu("x", "0"), on_gpu("x", "1")]) == {"a": (7_500, 7_500)}
    assert shares_of(gangs, [on_gpu("x", "0"), on_gpu("x", "0")]) == {"a": (10_000, 5_000)}


def test_a_worker_that_has_left_its_gang_is_not_counted_twice() -> None:
    gang = Gang(1, ("a", "a"), QUARTER)
    gang.has_become(("a",), 1)
    assert shares_of({("x", 1): gang}, [on_gpu("x", "0"), on_gpu("x", "1")]) == {"a": (2_500,)}
