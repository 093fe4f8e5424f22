"""A disk that takes no writes, or never answers: what the scheduler and the end of the server make of that."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lockstep.server import application
from lockstep.server.coordinator import dispatcher
from lockstep.server.store import Store
from lockstep.server.store import jobs as stored_jobs
from tests.support.server import serving


async def test_while_nothing_can_be_stored_the_scheduler_waits_between_its_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, has_tried = 0, threading.Event()

    def refuse(*_: Any) -> None:
        nonlocal tries
        tries += 1
        has_tried.set()
        raise sqlite3.OperationalError("database or disk is full")

    async with serving(tmp_path) as server:
        job = await server.submit()
        await server.submit()
        monkeypatch.setattr(dispatcher, "_RETRY_S", 3600.0)
        monkeypatch.setattr(stored_jobs, "_save", refuse)
        launcher = server.launcher()
        await launcher.be_ready()
        await asyncio.to_thread(has_tried.wait)
        for _ in range(50):
            await server.get(job.job_id)
        assert tries == 1
        monkeypatch.undo()


async def test_a_server_ends_though_its_disk_hangs_and_tells_the_other_gangs_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((dispatcher, "SHUTDOWN_GRACE_S"), (application, "_CALLS_GRACE_S")):
        monkeypatch.setattr(module, name, 0.2)
    monkeypatch.setattr(dispatcher, "_SHUTDOWN_MARGIN_S", 0.1)
    monkeypatch.setattr(application, "_DISK_GRACE_S", 0.2)
    hangs, answers, save = threading.Event(), threading.Event(), stored_jobs._save

    def hang(*arguments: Any) -> Any:
        hangs.set()
        answers.wait()
        return save(*arguments)

    async with serving(tmp_path) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        await server.submit()
        first = await launcher.next_start()
        await server.submit()
        second = await launcher.next_start()
        await launcher.report(first, 1)
        monkeypatch.setattr(stored_jobs, "_save", hang)
        reporting = asyncio.ensure_future(launcher.report(first, 2))
        await asyncio.to_thread(hangs.wait)
        try:
            stopping = asyncio.ensure_future(server.application.stop())
            await launcher.next_drain()
            assert (await launcher.next_stop()).job_id == second.job_id
            assert not await stopping
            assert (tmp_path / "server.json").exists(), "the folder is still its own"
        finally:
            answers.set()
        await asyncio.gather(reporting, return_exceptions=True)
        assert await server.application.stop()


async def test_work_on_files_goes_on_while_the_gangs_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "_CALLS_GRACE_S", 0.1)

    async with serving(tmp_path) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        await server.submit()
        gang = await launcher.next_start()
        stopping = asyncio.ensure_future(server.application.stop())
        await launcher.next_drain()
        await launcher.next_stop()
        await server.parts.files.run(time.sleep, 0.5, what="a download")
        await launcher.gang_stopped(gang)
        assert await stopping


async def test_an_end_that_a_hung_disk_holds_up_is_over_before_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "_DISK_GRACE_S", 0.2)
    answers, both = threading.Event(), threading.Barrier(2)
    close, closed_beside_another = Store.close, []

    def hang(store: Store) -> None:
        answers.wait()
        try:
            both.wait(0.5)
            closed_beside_another.append(store)
        except threading.BrokenBarrierError:
            close(store)

    monkeypatch.setattr(Store, "close", hang)
    async with serving(tmp_path) as server:
        try:
            assert not await server.application.stop()
        finally:
            asyncio.get_running_loop().call_later(0.05, answers.set)
        monkeypatch.setattr(application, "_DISK_GRACE_S", 30.0)
        assert await server.application.stop()
        assert not closed_beside_another
