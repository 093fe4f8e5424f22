from __future__ import annotations

import asyncio

import pytest

from lockstep.server.watching.shared_reads import SharedReads


async def test_those_who_ask_for_the_same_share_one_read() -> None:
    reads, done, begun = SharedReads(), asyncio.Event(), 0

    async def work() -> object:
        nonlocal begun
        begun += 1
        await done.wait()
        return object()

    asking = [asyncio.create_task(reads.read("a", work)) for _ in range(50)]
    other = asyncio.create_task(reads.read("b", work))
    await asyncio.sleep(0)
    asking[0].cancel()  # who asked first goes away
    done.set()
    results = await asyncio.gather(*asking[1:])
    assert len(set(map(id, results))) == 1
    assert await other is not results[0]
    assert begun == 2
    assert await reads.read("a", work) is not results[0], "what has ended is not kept unless it is asked for"


async def test_a_read_that_fails_fails_for_all_and_is_tried_again() -> None:
    reads = SharedReads()

    async def fail() -> None:
        raise OSError("no")

    async def work() -> str:
        return "yes"

    outcomes = await asyncio.gather(*(reads.read("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 3
    with pytest.raises(OSError, match="no"):
        await reads.read("a", fail)
    assert await reads.read("a", work) == "yes"


def test_what_is_kept_takes_no_more_than_it_may() -> None:
    reads = SharedReads(most_bytes=100)
    for number in range(50):
        reads.keep(number, f"value {number}", 30)
    assert [number for number in range(50) if reads.kept(number) is not None] == [47, 48, 49]
    assert reads.kept(47) == "value 47"
    reads.keep(50, "value 50", 30)
    assert [number for number in (47, 48, 49, 50) if reads.kept(number) is not None] == [47, 49, 50], (
        "48 was used longest ago"
    )
    reads.keep("large", "value", 101)
    assert reads.kept("large") is None
    reads.keep("a", "value", 60)
    reads.forget("a")
    reads.keep("b", "value", 100)
    assert reads.kept("b") == "value"
