"""What a server waits for has its time also when the server was stopped meanwhile."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time

import pytest

from lockstep.server.patience import PARTS, done_within
from tests.unit.server.harness import run

TIMEOUT_S = 5.0
STOPPED_S = 1.5 * TIMEOUT_S
SCRIPT = f"""
import asyncio, sys
from lockstep.server.patience import PARTS, done_within

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
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(2):
                assert process.stdout.readline() == "ready\n"
                process.send_signal(signal.SIGSTOP)
                time.sleep(STOPPED_S)
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == "True\n"
        finally:
            process.kill()


def test_a_wait_ends_when_its_time_is_over_and_when_it_is_done() -> None:
    async def scenario() -> None:
        cancelled = asyncio.Event()

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        assert not await done_within(wait(), 0.01 * PARTS)
        assert cancelled.is_set()
        assert await done_within(asyncio.sleep(0), 60.0)

    run(scenario())


def test_what_goes_wrong_while_it_is_waited_for_is_told() -> None:
    async def fail() -> None:
        raise OSError("no such process")

    async def scenario() -> None:
        with pytest.raises(OSError, match="no such process"):
            await done_within(fail(), 60.0)

    run(scenario())
