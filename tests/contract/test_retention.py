"""Jobs that ended long ago are deleted where the operator wants that, with everything that belongs to them."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest
from sqlalchemy import delete, func, select

from lockstep.server.coordinator import retention
from lockstep.server.errors import DiskFull
from lockstep.server.store.tables import job_events, jobs, metadata
from lockstep.v1.checkpoint_service_pb2 import ListCheckpointsRequest
from lockstep.v1.internal_service_pb2 import ReportLogsRequest, StartGang
from lockstep.v1.job_pb2 import JOB_STATE_SUCCEEDED
from lockstep.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WatchJobRequest
from lockstep.v1.log_service_pb2 import LogLine, StreamLogsRequest
from lockstep.v1.log_service_pb2_grpc import LogServiceStub
from lockstep.v1.metrics_service_pb2 import GetLedgerRequest, ListMetricsRequest, StreamMetricsRequest
from tests.contract.test_ledger import account_of, report
from tests.support.server import (
    Running,
    ScriptedLauncher,
    digits_spec,
    fetch,
    loss_at,
    serving,
    status_of,
    write_checkpoint,
)

POINTS = 12_000


async def finish_a_job(server: Running, launcher: ScriptedLauncher, root: Path) -> StartGang:
    request = SubmitJobRequest(spec=digits_spec(labels={"team": "x"}), request_id="key")
    await server.jobs.SubmitJob(request)
    gang = await launcher.next_start()
    await log_a_line(launcher, gang, 6)
    points = [loss_at(step, 0.5) for step in range(1, POINTS + 1)]
    await launcher.finish(gang, 1, points=points, checkpoints=[write_checkpoint(root, 1)])
    await workers_leave(server)
    return gang


async def log_a_line(launcher: ScriptedLauncher, gang: StartGang, end: int) -> None:
    line = ReportLogsRequest(job_id=gang.job_id, attempt=1, number=0, lines=[LogLine(text="hello")], ends=[end])
    await launcher._stub.ReportLogs(line, metadata=(("lockstep-attempt-token", gang.attempt_token),))


async def workers_leave(server: Running) -> None:
    while server.coordinator.counts()["entries"]:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def delete_all(server: Running) -> None:
    """Have all jobs deleted that have ended."""
    await server.coordinator.tidy(datetime.now(UTC) + timedelta(days=10))


async def all_of(call: AsyncIterable[Any]) -> list[Any]:
    return [message async for message in call]


READS: dict[str, Callable[[Running, str], Awaitable[Any]]] = {
    "GetJob": lambda server, job_id: server.get(job_id),
    "WatchJob": lambda server, job_id: all_of(server.jobs.WatchJob(WatchJobRequest(job_id=job_id))),
    "ListMetrics": lambda server, job_id: server.metrics.ListMetrics(ListMetricsRequest(job_id=job_id)),
    "StreamMetrics": lambda server, job_id: all_of(server.metrics.StreamMetrics(StreamMetricsRequest(job_id=job_id))),
    "GetLedger": lambda server, job_id: server.metrics.GetLedger(GetLedgerRequest(job_id=job_id)),
    "ListCheckpoints": lambda server, job_id: server.checkpoints.ListCheckpoints(ListCheckpointsRequest(job_id=job_id)),
    "StreamLogs": lambda server, job_id: all_of(
        LogServiceStub(server.channel).StreamLogs(StreamLogsRequest(job_id=job_id))
    ),
}


@contextmanager
def a_loop_that_hangs_is_seen() -> Iterator[None]:
    """Fail where an event loop never comes round: no timeout of its own would end it."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise AssertionError("the event loop hangs")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def rows(server: Running) -> dict[str, int]:
    names = [table for table in metadata.sorted_tables if table.name not in ("meta", "alembic_version")]
    return await server.parts.store.database.read(
        lambda connection: {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in names}
    )


async def test_a_job_is_deleted_so_many_days_after_its_end_and_not_before(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        begun = await server.submit(resources={"workers": 2, "min_workers": 2})
        await launcher.next_start()
        before = await rows(server)
        assert before["metric_points"] == POINTS
        await server.coordinator.tidy(datetime.now(UTC) + timedelta(days=1.9))
        assert await rows(server) == before
        await server.coordinator.tidy(datetime.now(UTC) + timedelta(days=2.1))
        after = await rows(server)
        assert {name: count for name, count in after.items() if count} == {"jobs": 1, "job_events": 2}
        error = await status_of(server.jobs.GetJob(GetJobRequest(job_id=gang.job_id)))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (await server.get(begun.job_id)).job_id == begun.job_id
        _, page = await fetch(server.application.http_address, "/metrics")
        assert 'lockstep_jobs{state="succeeded"} 0.0' in page
        assert gang.job_id not in page
        assert (tmp_path / "c" / "step-000000000001" / "model.safetensors").exists(), "weights are never removed"
    assert not (tmp_path / "logs" / gang.job_id).exists()


async def test_without_the_setting_every_job_is_kept(
    server: Running, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    await finish_a_job(server, launcher, tmp_path / "c")
    await server.coordinator.tidy(datetime.now(UTC) + timedelta(days=10_000))
    count = await server.parts.store.database.read(
        lambda connection: connection.execute(select(func.count()).select_from(jobs)).scalar_one()
    )
    assert count == 1


async def test_a_watch_ends_although_events_of_its_job_are_lost(
    server: Running, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    gang = await finish_a_job(server, launcher, tmp_path / "c")
    await server.parts.store.database.write(
        lambda connection: connection.execute(delete(job_events).where(job_events.c.sequence > 1))
    )
    with a_loop_that_hangs_is_seen():
        messages = await all_of(server.jobs.WatchJob(WatchJobRequest(job_id=gang.job_id)))
    assert messages[-1].job.state == JOB_STATE_SUCCEEDED
    assert [event.sequence for message in messages for event in message.events] == [1]


@pytest.mark.parametrize("name", READS)
async def test_of_a_job_that_is_being_deleted_no_part_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(retention, "_POINTS_AT_ONCE", 5_000)

    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        codes = []
        delete_points = server.parts.store.metrics.delete_points

        async def delete_some(job_id: str, limit: int) -> int:
            deleted = await delete_points(job_id, limit)
            codes.append((await status_of(READS[name](server, gang.job_id))).code())
            return deleted

        monkeypatch.setattr(server.parts.store.metrics, "delete_points", delete_some)
        await delete_all(server)
        assert codes == [grpc.StatusCode.NOT_FOUND] * 3


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("WatchJob", "jobs.list_events"),
        ("ListMetrics", "metrics.list_points"),
        ("StreamMetrics", "metrics.new_points"),
        ("GetLedger", "ledgers.load_ledgers"),
        ("ListCheckpoints", "checkpoints.list_checkpoints"),
        ("StreamLogs", "logs.read"),
    ],
)
async def test_a_read_that_is_overtaken_by_the_deletion_of_its_job_is_not_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: str
) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        part_name, _, method = read.partition(".")
        part: Any = server.application._logs if part_name == "logs" else getattr(server.parts.store, part_name)
        really = getattr(part, method)

        async def delete_first(*args: Any, **given: Any) -> Any:
            await delete_all(server)
            return await really(*args, **given)

        monkeypatch.setattr(part, method, delete_first)
        with a_loop_that_hangs_is_seen():
            error = await status_of(READS[name](server, gang.job_id))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_job_that_was_read_while_it_was_deleted_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        get_job, is_deleted, has_read = server.parts.store.jobs.get_job, asyncio.Event(), asyncio.Event()

        async def get_late(job_id: str) -> Any:
            job = await get_job(job_id)
            has_read.set()
            await is_deleted.wait()
            return job

        monkeypatch.setattr(server.parts.store.jobs, "get_job", get_late)
        asking = asyncio.create_task(server.get(gang.job_id))
        await has_read.wait()
        await delete_all(server)
        asked_after = asyncio.create_task(status_of(server.get(gang.job_id)))
        is_deleted.set()
        await asking
        assert (await asked_after).code() is grpc.StatusCode.NOT_FOUND
        assert (await status_of(server.get(gang.job_id))).code() is grpc.StatusCode.NOT_FOUND


async def test_the_account_of_a_deleted_job_does_not_keep_those_of_others_from_being_stored(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        await server.submit()
        gone = await launcher.next_start()
        await report(server, gone, account_of(gone, 0, 1))
        await launcher.finish(gone, 1)
        await workers_leave(server)
        await delete_all(server)
        error = await status_of(report(server, gone, account_of(gone, 0, 2)))
        assert (error.code(), "there is no job" in error.details()) == (grpc.StatusCode.PERMISSION_DENIED, True)
        await server.submit()
        gang = await launcher.next_start()
        await report(server, gang, account_of(gang, 0, 1))
        ledgers, store = server.parts.ledgers, server.parts.store
        # One that was on its way while its job was deleted.
        await ledgers.report(account_of(gone, 0, 3))
        await ledgers.store_all()
        assert (await store.ledgers.load_ledgers([gone.job_id, gang.job_id])).keys() == {gang.job_id}


async def test_a_ledger_that_is_being_stored_while_its_job_is_deleted_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready(cpus=1.0)
        gangs = []
        for _ in range(2):
            await server.submit()
            gangs.append(await launcher.next_start())
            await launcher.finish(gangs[-1], 1)
        await workers_leave(server)
        ledgers, store = server.parts.ledgers, server.parts.store
        save = store.ledgers.save_ledgers

        async def fail(told: Any) -> None:
            await delete_all(server)
            raise OSError("the disk is full")

        monkeypatch.setattr(store.ledgers, "save_ledgers", fail)
        for gang in gangs:
            await report(server, gang, account_of(gang, 0, 1))
        await ledgers.store_all()
        monkeypatch.setattr(store.ledgers, "save_ledgers", save)
        assert not ledgers.newest()
        await server.submit()
        gang = await launcher.next_start()
        await report(server, gang, account_of(gang, 0, 1))
        await ledgers.store_all()
        assert (await store.ledgers.load_ledgers([gang.job_id])).keys() == {gang.job_id}


async def test_logs_of_a_deleted_job_do_not_come_back(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        await delete_all(server)
        await log_a_line(launcher, gang, 12)  # taken, so that the node's spool goes
        assert not list((tmp_path / "logs").iterdir())
        waiting = await server.submit()
        (tmp_path / "logs" / waiting.job_id).mkdir()
    (tmp_path / "logs" / gang.job_id).mkdir()
    (tmp_path / "logs" / gang.job_id / "0").write_bytes(b"x")
    (tmp_path / "logs" / "ray.log").touch()
    there = {waiting.job_id, "ray.log"}
    async with serving(tmp_path):  # without the setting no job is deleted, nor a log that may be wanted
        assert {path.name for path in (tmp_path / "logs").iterdir()} == there | {gang.job_id}
    async with serving(tmp_path, keep_days=2):
        assert {path.name for path in (tmp_path / "logs").iterdir()} == there


async def test_what_is_being_written_to_a_log_is_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")
        logs: Any = server.application._logs
        append, is_writing, may_write = logs._append, threading.Event(), threading.Event()

        def append_late(*args: Any) -> Any:
            is_writing.set()
            may_write.wait()
            return append(*args)

        monkeypatch.setattr(logs, "_append", append_late)
        writing = asyncio.create_task(log_a_line(launcher, gang, 12))
        await asyncio.to_thread(is_writing.wait)
        deleting = asyncio.create_task(delete_all(server))
        while await server.parts.store.jobs.get_job(gang.job_id) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        may_write.set()
        await asyncio.gather(writing, deleting)
    assert not list((tmp_path / "logs").iterdir())


async def test_a_job_of_which_a_part_could_be_deleted_is_not_shown_until_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, keep_days=2) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await finish_a_job(server, launcher, tmp_path / "c")

        async def fail(job_id: str) -> None:
            raise DiskFull("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(server.parts.store.jobs, "delete_job", fail)
            await delete_all(server)
        assert (await rows(server))["metric_points"] == 0
        assert (await status_of(server.get(gang.job_id))).code() is grpc.StatusCode.NOT_FOUND
    async with serving(tmp_path, keep_days=1e-9) as server:  # at once, not when it is tidied the next time
        while (await rows(server))["jobs"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await status_of(server.get(gang.job_id))).code() is grpc.StatusCode.NOT_FOUND
        while (tmp_path / "logs" / gang.job_id).exists():  # noqa: ASYNC110
            await asyncio.sleep(0)
