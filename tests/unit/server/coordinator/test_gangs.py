from __future__ import annotations

from collections import Counter
from typing import Any

from lockstep.server.coordinator.gangs import Gang, held_by
from lockstep.server.scheduling.scheduler import Amount

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
