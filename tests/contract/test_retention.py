"""Jobs that ended long ago are deleted where the operator wants that, with everything that belongs to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from sqlalchemy import func, select

from lockstep.server.store.tables import jobs, metadata
from lockstep.v1.internal_service_pb2 import ReportLogsRequest, StartGang
from lockstep.v1.job_pb2 import JOB_STATE_SUCCEEDED
from lockstep.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest
from lockstep.v1.log_service_pb2 import LogLine
from tests.unit.server.harness import (
    Running,
    ScriptedLauncher,
    digits_spec,
    fetch,
    loss_at,
    run,
    serving,
    status_of,
    write_checkpoint,
)

POINTS = 12_000


async def finish_a_job(server: Running, launcher: ScriptedLauncher, root: Path) -> StartGang:
    request = SubmitJobRequest(spec=digits_spec(labels={"team": "x"}), request_id="key")
    await server.jobs.SubmitJob(request)
    gang = await launcher.next_start()
    line = ReportLogsRequest(job_id=gang.job_id, attempt=1, number=0, lines=[LogLine(text="hello")], ends=[6])
    await launcher._stub.ReportLogs(line, metadata=(("lockstep-attempt-token", gang.attempt_token),))
    points = [loss_at(step, 0.5) for step in range(1, POINTS + 1)]
    await launcher.finish(gang, 1, points=points, checkpoints=[write_checkpoint(root, 1)])
    await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)
    return gang


async def rows(server: Running) -> dict[str, int]:
    names = [table for table in metadata.sorted_tables if table.name not in ("meta", "alembic_version")]
    return await server.coordinator.store.read(
        lambda connection: {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in names}
    )


def test_a_job_is_deleted_so_many_days_after_its_end_and_not_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, keep_days=2) as server:
            launcher = server.launcher()
            await launcher.be_ready()
            gang = await finish_a_job(server, launcher, tmp_path / "c")
            waiting = await server.submit(resources={"workers": 2, "min_workers": 2})
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
            assert (await server.get(waiting.job_id)).job_id == waiting.job_id
            _, page = await fetch(server.application.http_address, "/metrics")
            assert 'lockstep_jobs{state="succeeded"} 0.0' in page
            assert gang.job_id not in page
            assert (tmp_path / "c" / "step-000000000001" / "model.safetensors").exists(), "weights are never removed"
        assert not (tmp_path / "logs" / gang.job_id).exists()

    run(scenario())


def test_without_the_setting_every_job_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher = server.launcher()
            await launcher.be_ready()
            await finish_a_job(server, launcher, tmp_path / "c")
            await server.coordinator.tidy(datetime.now(UTC) + timedelta(days=10_000))
            count = await server.coordinator.store.read(
                lambda connection: connection.execute(select(func.count()).select_from(jobs)).scalar_one()
            )
            assert count == 1

    run(scenario())
