"""What a server waits for has its time also when the server was stopped meanwhile."""

from __future__ import annotations

import asyncio
import sys

import pytest

from lockstep.server.process.timeouts import PARTS, done_within
from tests.support.stopping import stop_and_go_on

TIMEOUT_S = 3.0
STOPPED_S = 1.5 * TIMEOUT_S
SCRIPT = f"""
import asyncio, sys
from lockstep.server.process.timeouts import PARTS, done_within

async def main():
    print("ready", flush=True)
    left = asyncio.Event()
    # Two parts from now, which is long over when this process goes on.
    asyncio.get_running_loop().call_later(2 * {TIMEOUT_S} / PARTS, left.set)
    print(await done_within(left.wait(), {TIMEOUT_S}), flush=True)

    async def leave():
        await asyncio.sleep({TIMEOUT_S} / PARTS)
        await asyncio.sleep({TIMEOUT_S} / PARTS)

    print("ready", flush=True)
    print(await done_within(leave(), {TIMEOUT_S}), flush=True)

asyncio.run(main())
"""


def test_a_wait_is_not_over_because_the_server_was_stopped() -> None:
    assert stop_and_go_on([sys.executable, "-c", SCRIPT], STOPPED_S) == ["True", "True"]


async def test_a_wait_ends_when_its_time_is_over_and_when_it_is_done() -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    assert not await done_within(wait(), 0.01 * PARTS)
    assert cancelled.is_set()
    assert await done_within(asyncio.sleep(0), 60.0)


async def test_what_goes_wrong_while_it_is_waited_for_is_told() -> None:
    async def fail() -> None:
        raise OSError("no such process")

    with pytest.raises(OSError, match="no such process"):
        await done_within(fail(), 60.0)
