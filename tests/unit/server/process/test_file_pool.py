"""Work that hangs holds up nobody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from lockstep.server.errors import FilesHang, ShuttingDown
from lockstep.server.process.file_pool import FilePool


@pytest.fixture
def hang() -> Iterator[Callable[[], str]]:
    """Work that comes back when the test is over."""
    is_over = threading.Event()

    def work() -> str:
        is_over.wait()
        return "late"

    yield work
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "lockstep-files":
            thread.join(timeout=20)
            assert not thread.is_alive()


async def test_work_runs_beside_work_that_hangs_until_all_threads_do(hang: Callable[[], str]) -> None:
    before = sum(thread.name == "lockstep-files" for thread in threading.enumerate())
    pool = FilePool(most_threads=3, deadline_s=0.05)
    for _ in range(2):
        with pytest.raises(FilesHang, match=r"reading x has not come to an end after 0\.05 s"):
            await pool.run(hang, what="reading x")
        assert await pool.run(lambda: "in time", what="reading y") == "in time"
    for work in (hang, hang, lambda: "never begun"):
        with pytest.raises(FilesHang):
            await pool.run(work, what="reading x")
    assert sum(thread.name == "lockstep-files" for thread in threading.enumerate()) - before == 3
    pool.close()


async def test_errors_come_through(hang: Callable[[], str]) -> None:
    pool = FilePool()
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0, what="dividing")
    pool.close()


async def test_what_comes_too_late_is_dropped(hang: Callable[[], str]) -> None:
    dropped, is_dropped = [], threading.Event()

    def drop(result: str) -> None:
        dropped.append(result)
        is_dropped.set()

    pool, may_go_on = FilePool(deadline_s=0.05), threading.Event()

    def work() -> str:
        may_go_on.wait()
        return "late"

    with pytest.raises(FilesHang):
        await pool.run(work, what="reading x", drop=drop)
    waiting = asyncio.ensure_future(pool.run(work, what="reading x", drop=drop))
    await asyncio.sleep(0)
    waiting.cancel()
    may_go_on.set()
    assert await asyncio.to_thread(is_dropped.wait, 20)
    pool.close()
    assert set(dropped) == {"late"}


async def test_what_was_done_when_nobody_waited_any_more_is_dropped_beside_the_event_loop(
    hang: Callable[[], str],
) -> None:
    dropped: list[tuple[str, bool]] = []

    pool, is_dropped = FilePool(), threading.Event()

    def drop(result: str) -> None:
        dropped.append((result, threading.current_thread() is threading.main_thread()))
        is_dropped.set()

    waiting = asyncio.ensure_future(pool.run(lambda: "done", what="reading x", drop=drop))
    await asyncio.sleep(0)
    while pool._unfinished:  # and this loop does not learn of it
        continue
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await asyncio.to_thread(is_dropped.wait, 20)
    pool.close()
    assert dropped == [("done", False)]


@pytest.mark.parametrize("is_closed", [False, True])
async def test_what_is_left_to_the_threads_is_done_also_while_the_server_stops(
    hang: Callable[[], str], is_closed: bool
) -> None:
    pool, is_done = FilePool(), threading.Event()
    await pool.run(lambda: None, what="reading y")
    if is_closed:
        pool.close()
    with capture_logs() as logs:
        pool.leave(lambda: 1 // 0)
        pool.leave(is_done.set)
        assert await asyncio.to_thread(is_done.wait, 20)
        while not logs:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert logs[0]["error"].startswith("ZeroDivisionError")
    pool.close()


async def test_a_server_that_stops_waits_for_nothing_that_hangs(hang: Callable[[], str]) -> None:
    pool = FilePool()
    waiting = [asyncio.ensure_future(pool.run(hang, what="reading x")) for _ in range(2)]
    await pool.run(lambda: None, what="reading y")
    pool.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ShuttingDown)
    with pytest.raises(ShuttingDown):
        await pool.run(lambda: None, what="reading y")


def test_a_process_ends_although_its_reads_hang() -> None:
    script = """
import asyncio, threading
from lockstep.server.process.file_pool import FilePool
async def main():
    pool = FilePool()
    hanging = asyncio.ensure_future(pool.run(threading.Event().wait, what="x"))
    await pool.run(lambda: None, what="y")
    pool.close()
    await asyncio.wait([hanging])
    hanging.exception()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
