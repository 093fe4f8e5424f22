from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from lockstep.server.process.background import keep_running


async def test_work_that_should_go_on_and_fails_is_told_in_the_log_and_work_that_is_cancelled_is_not() -> None:
    async def fail() -> None:
        raise OSError("Too many open files")

    with capture_logs() as logs:
        failing = keep_running(fail(), name="open files")
        going_on = keep_running(asyncio.sleep(3600), name="other")
        await asyncio.wait([failing])
        going_on.cancel()
        await asyncio.wait([going_on])
    assert [(line["task"], str(line["exc_info"])) for line in logs] == [("open files", "Too many open files")]
