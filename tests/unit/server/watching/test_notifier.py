from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lockstep.server.errors import ShuttingDown
from lockstep.server.watching.notifier import Notifier

MANY = 300


async def listen(notifier: Notifier, heard: list[int], ready: asyncio.Semaphore, looks: int) -> None:
    """Follow a job as a servicer does, until it was woken so often; notes the round of each look."""
    with notifier.listen("job") as wakeup:
        for _ in range(looks):
            wakeup.clear()
            ready.release()
            await wakeup.wait()
            heard.append(notifier.round_of("job"))


async def test_others_have_their_turn_while_many_watchers_are_woken() -> None:
    notifier, ready = Notifier(), asyncio.Semaphore(0)
    heard: list[Any] = []
    watchers = [asyncio.create_task(listen(notifier, heard, ready, 1)) for _ in range(MANY)]
    for _ in range(MANY):
        await ready.acquire()
    notifier.notify("job")
    turns = 0
    while len(heard) < MANY:
        before = len(heard)
        await asyncio.sleep(0)
        assert len(heard) - before <= 8, "so long would a call of somebody else have waited"
        turns += 1
    await asyncio.gather(*watchers)


async def test_what_happens_during_a_round_is_told_by_one_more() -> None:
    notifier, ready = Notifier(), asyncio.Semaphore(0)
    heard: list[Any] = []
    watchers = [asyncio.create_task(listen(notifier, heard, ready, 2)) for _ in range(MANY)]
    for _ in range(MANY):
        await ready.acquire()
    notifier.notify("job")
    first = notifier.round_of("job")
    await ready.acquire()  # one has heard
    for _ in range(5):
        notifier.notify("job")
    assert notifier.round_of("job") == first, "who reads in this round need not see it"
    await asyncio.gather(*watchers)
    assert [round for round in heard if round == first] == [first] * MANY
    assert len({round for round in heard if round != first}) == 1


async def test_few_watchers_are_woken_at_once_and_each_time() -> None:
    notifier = Notifier()
    with notifier.listen("job") as wakeup:
        for _ in range(3):
            before = notifier.round_of("job")
            notifier.notify("job")
            assert wakeup.is_set()
            assert notifier.round_of("job") != before
            wakeup.clear()
        notifier.notify("another job")
        assert not wakeup.is_set()


async def test_watchers_may_leave_and_come_in_the_middle_of_a_round() -> None:
    notifier, ready = Notifier(), asyncio.Semaphore(0)
    heard: list[Any] = []
    watchers = [asyncio.create_task(listen(notifier, heard, ready, 1)) for _ in range(MANY)]
    for _ in range(MANY):
        await ready.acquire()
    notifier.notify("job")
    for watcher in watchers[::2]:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    assert notifier.count() == 0
    with notifier.listen("job") as wakeup:
        notifier.notify("job")
        assert wakeup.is_set()
    assert notifier.count() == 0


async def test_whoever_watches_is_told_to_leave_when_the_server_goes() -> None:
    notifier = Notifier()
    with notifier.listen("a") as first, notifier.listen("b") as second:
        notifier.check()
        notifier.close()
        assert first.is_set()
        assert second.is_set()
        with pytest.raises(ShuttingDown):
            notifier.check()
