from __future__ import annotations

import asyncio

import pytest

from lockstep.server.errors import ShuttingDown
from lockstep.server.watch import Bells
from tests.unit.server.harness import run

MANY = 300


async def listen(bells: Bells, heard: list[int], ready: asyncio.Semaphore, looks: int) -> None:
    """Follow a job as a servicer does, until it was woken so often; notes the round of each look."""
    with bells.listen("job") as bell:
        for _ in range(looks):
            bell.clear()
            ready.release()
            await bell.wait()
            heard.append(bells.round_of("job"))


def test_others_have_their_turn_while_many_watchers_are_woken() -> None:
    async def scenario() -> None:
        bells, heard, ready = Bells(), [], asyncio.Semaphore(0)
        watchers = [asyncio.create_task(listen(bells, heard, ready, 1)) for _ in range(MANY)]
        for _ in range(MANY):
            await ready.acquire()
        bells.ring("job")
        turns = 0
        while len(heard) < MANY:
            before = len(heard)
            await asyncio.sleep(0)
            assert len(heard) - before <= 8, "so long would a call of somebody else have waited"
            turns += 1
        await asyncio.gather(*watchers)

    run(scenario())


def test_what_happens_during_a_round_is_told_by_one_more() -> None:
    async def scenario() -> None:
        bells, heard, ready = Bells(), [], asyncio.Semaphore(0)
        watchers = [asyncio.create_task(listen(bells, heard, ready, 2)) for _ in range(MANY)]
        for _ in range(MANY):
            await ready.acquire()
        bells.ring("job")
        first = bells.round_of("job")
        await ready.acquire()  # one has heard
        for _ in range(5):
            bells.ring("job")
        assert bells.round_of("job") == first, "who reads in this round need not see it"
        await asyncio.gather(*watchers)
        assert [round for round in heard if round == first] == [first] * MANY
        assert len({round for round in heard if round != first}) == 1

    run(scenario())


def test_few_watchers_are_woken_at_once_and_each_time() -> None:
    async def scenario() -> None:
        bells = Bells()
        with bells.listen("job") as bell:
            for _ in range(3):
                before = bells.round_of("job")
                bells.ring("job")
                assert bell.is_set()
                assert bells.round_of("job") != before
                bell.clear()
            bells.ring("another job")
            assert not bell.is_set()

    run(scenario())


def test_watchers_may_leave_and_come_in_the_middle_of_a_round() -> None:
    async def scenario() -> None:
        bells, heard, ready = Bells(), [], asyncio.Semaphore(0)
        watchers = [asyncio.create_task(listen(bells, heard, ready, 1)) for _ in range(MANY)]
        for _ in range(MANY):
            await ready.acquire()
        bells.ring("job")
        for watcher in watchers[::2]:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        assert bells.count() == 0
        with bells.listen("job") as bell:
            bells.ring("job")
            assert bell.is_set()
        assert bells.count() == 0

    run(scenario())


def test_whoever_watches_is_told_to_leave_when_the_server_goes() -> None:
    async def scenario() -> None:
        bells = Bells()
        with bells.listen("a") as first, bells.listen("b") as second:
            bells.check()
            bells.close()
            assert first.is_set()
            assert second.is_set()
            with pytest.raises(ShuttingDown):
                bells.check()

    run(scenario())
