"""A store whose disk is full, or whose files are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import structlog
from grpc_status import rpc_status

from lockstep.server.application import Application
from lockstep.server.errors import AlreadyExists, DiskFull
from lockstep.server.health import Health
from lockstep.server.jobs.job import State
from lockstep.server.settings import Settings, StartupError
from lockstep.server.store import Store
from lockstep.v1.job_service_pb2 import CancelJobRequest
from tests.support.server import Running, fetch, serving, status_of
from tests.unit.server.store.test_store import NOW, new_job, open_store


async def allow_pages(store: Store, more: int) -> None:
    """Let the store take so many pages more than now; SQLite then says what it says of a full disk."""

    def limit(connection: object) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()  # type: ignore[attr-defined]
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + more}")  # type: ignore[attr-defined]

    await store.database.write(limit)


async def test_a_full_disk_is_told_as_such_once_in_the_log_and_forgotten_when_there_is_room(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-0"))
        await allow_pages(store, 2)
        with structlog.testing.capture_logs() as logs:
            stored, refused = 0, 0
            for start in range(1, 200, 10):
                outcomes = await asyncio.gather(
                    *(store.jobs.submit(new_job(f"job-{start + i}")) for i in range(10)), return_exceptions=True
                )
                stored += sum(isinstance(outcome, tuple) for outcome in outcomes)
                failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                refused += len(failures)
                for failure in failures:
                    assert isinstance(failure, DiskFull)
                    assert f"the disk of {tmp_path} is full" in failure.message
            assert refused
            with pytest.raises(DiskFull):
                await store.jobs.save(job, messages=["a" * 20_000], now=NOW)
        assert [line["log_level"] for line in logs] == ["error"]
        assert "exc_info" not in logs[0]
        assert len(await store.jobs.list_jobs(before=None, limit=1_000, make=list)) == 1 + stored
        with structlog.testing.capture_logs() as logs:
            await allow_pages(store, 1_000)
            await store.jobs.submit(new_job("job-last"))
        assert [line["event"] for line in logs] == ["the store can be written again"]


async def test_health_says_that_the_disk_is_full_until_there_is_room_and_the_log_says_each_once(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        health = Health(store)
        job, _ = await store.jobs.submit(new_job("job-0"))
        await allow_pages(store, 0)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(DiskFull):
                    await store.jobs.save(job, messages=["a" * 20_000], now=NOW)
                assert f"the disk of {tmp_path} is full" in await health.why_unwell()
            await allow_pages(store, 1_000)
            assert await health.why_unwell() == "", "nobody else need come with a change"
        assert [line["event"] for line in logs] == ["nothing can be stored", "the store can be written again"]


async def test_only_commits_that_change_something_count_as_such(tmp_path: Path) -> None:
    counted: list[int] = []
    store = Store(tmp_path / "lockstep.db", lambda changes, seconds: counted.append(changes))
    try:
        await store.try_out()
        await store.jobs.submit(new_job("job-0"))
        await store.try_out()
        assert counted == [1]
    finally:
        store.close()


async def test_a_change_that_is_wrong_by_itself_says_so_and_is_no_trouble_of_the_store(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        with structlog.testing.capture_logs() as logs:
            await store.jobs.submit(new_job("job-0", "key"))
            outcomes = await asyncio.gather(
                store.jobs.submit(new_job("job-1", "key", digest="other")),
                store.jobs.submit(new_job("job-0")),
                store.jobs.submit(new_job("job-2")),
                return_exceptions=True,
            )
        assert isinstance(outcomes[0], AlreadyExists)
        assert "UNIQUE" in str(outcomes[1])
        assert isinstance(outcomes[2], tuple)
        assert logs == []


async def refusal(server: Running, labels: dict[str, str]) -> grpc.aio.AioRpcError | None:
    try:
        await server.submit(labels=labels)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_calls_say_that_the_disk_is_full_and_what_waits_goes_on_when_it_is_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        store = server.parts.store
        launcher = server.launcher()
        job = await server.submit()
        await allow_pages(store, 0)
        with structlog.testing.capture_logs() as logs:
            for labels in ({"a": "x" * 200, "b": "y" * 200}, {}):
                while (error := await refusal(server, labels)) is None:
                    continue
                for _ in range(5):
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert f"the disk of {tmp_path} is full" in (error.details() or "")
                    assert b"DISK_FULL" in rpc_status.from_call(error).details[0].value
                    error = await status_of(server.submit(labels=labels))
            await launcher.be_ready()  # the job would start now
            error = await status_of(server.submit())
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert {line["event"] for line in logs if line["log_level"] == "error"} == {"nothing can be stored"}
        assert not any("exc_info" in line for line in logs)
        await allow_pages(store, 1_000)
        assert (await launcher.next_start()).job_id == job.job_id
        await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs more rights than this user has")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def start_and_stop(folder: Path) -> None:
    settings = Settings(data_dir=folder, listen="127.0.0.1:0", http="127.0.0.1:0", num_cpus=1, num_gpus=0)
    application = Application(settings, keeps_cluster=False)
    await application.start()
    await application.stop()


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            continue


@pytest.mark.parametrize("has_store", [False, True])
async def test_a_start_on_a_full_disk_says_so(small_disk: Path, has_store: bool) -> None:
    if has_store:
        await start_and_stop(small_disk)
    fill(small_disk)
    with pytest.raises(StartupError, match=f"the disk of --data-dir {small_disk} is full; free some space"):
        await start_and_stop(small_disk)
    (small_disk / "filler").unlink()
    await start_and_stop(small_disk)


async def test_health_is_bad_while_a_disk_is_full_and_good_again_when_there_is_room(small_disk: Path) -> None:
    async with open_store(small_disk) as store:
        health = Health(store)
        job, _ = await store.jobs.submit(new_job("job-0"))
        fill(small_disk)
        with pytest.raises(DiskFull):
            await store.jobs.save(job, messages=["a" * 20_000], now=NOW)
        for _ in range(3):
            assert f"the disk of {small_disk} is full" in await health.why_unwell()
        (small_disk / "filler").unlink()
        assert await health.why_unwell() == ""
        await store.jobs.submit(new_job("job-1"))


async def crashed_store(folder: Path, jobs: int) -> None:
    """Leave what a killed server leaves: the log with the newest jobs was not carried over."""
    running = folder / "running"
    running.mkdir()

    async with open_store(running) as store:
        for number in range(jobs):
            await store.jobs.submit(new_job(f"job-{number}"))
        for path in running.iterdir():
            shutil.copy(path, folder / path.name)


async def known_jobs(folder: Path) -> int:
    async with open_store(folder) as store:
        return sum((await store.jobs.count_by_state()).values())


@pytest.mark.parametrize("damage", ["none", "cut", "flipped"])
async def test_acknowledged_changes_that_are_lost_are_told(tmp_path: Path, damage: str) -> None:
    await crashed_store(tmp_path, jobs=30)
    log = tmp_path / "lockstep.db-wal"
    data = bytearray(log.read_bytes())
    half = len(data) // 2
    if damage == "cut":
        data = data[:half]
    elif damage == "flipped":
        data[half] ^= 1
    log.write_bytes(data)

    with structlog.testing.capture_logs() as logs:
        found = await known_jobs(tmp_path)
    if damage == "none":
        assert (found, logs) == (30, [])
    else:
        assert found < 30
        [line] = logs
        assert line["log_level"] == "error"
        assert line["event"].startswith("changes that were acknowledged are lost")
        assert line["lost_pages"] > 0
    with structlog.testing.capture_logs() as logs:
        await known_jobs(tmp_path)
    assert logs == []


async def test_a_damaged_store_ends_the_start_in_words_or_starts(tmp_path: Path) -> None:
    """Wherever bytes are damaged: SQLite does not notice all of it, but nothing ends with a traceback."""
    draw = random.Random(0)
    whole = tmp_path / "whole"
    await start_and_stop(whole)

    async def fill() -> None:
        async with open_store(whole) as store:
            for number in range(100):
                job, _ = await store.jobs.submit(new_job(f"job-{number}", f"key-{number}", team="x"))
                await store.jobs.save(replace(job, state=State.PAUSED), now=NOW, messages=["paused"])

    await fill()
    data = (whole / "lockstep.db").read_bytes()
    refused = 0
    for number in range(25):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        damaged = bytearray(data)
        for _ in range(200):
            damaged[draw.randrange(100, len(data))] = draw.randrange(256)
        (folder / "lockstep.db").write_bytes(damaged)
        try:
            await start_and_stop(folder)
        except StartupError as error:
            refused += 1
            assert "put a good copy in its place" in str(error)
    assert refused


@pytest.mark.parametrize("is_there", [True, False])
async def test_an_empty_store_beside_what_a_server_has_left_is_refused(tmp_path: Path, is_there: bool) -> None:
    await start_and_stop(tmp_path)
    (tmp_path / "lockstep.db").write_bytes(b"") if is_there else (tmp_path / "lockstep.db").unlink()
    with pytest.raises(StartupError, match="beside it lies what an earlier server has left; put a good copy"):
        await start_and_stop(tmp_path)


async def test_a_full_disk_does_not_stop_reading(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        job = await server.submit()
        await allow_pages(server.parts.store, 0)
        assert (await server.get(job.job_id)).job_id == job.job_id
        assert (await fetch(server.application.http_address, "/metrics"))[0] == 200
