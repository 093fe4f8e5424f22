"""What Prometheus sees of jobs that begin and end, and of GPUs, over the life of more than one server."""

from __future__ import annotations

import re
import time
from pathlib import Path

from lockstep.v1.internal_service_pb2 import ReportLedgerRequest, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_RUNNING
from lockstep.v1.ledger_pb2 import PhaseSeconds
from tests.contract.test_node_reports import ready
from tests.support.server import Running, ScriptedLauncher, fetch, serving, start_job


async def page_of(server: Running) -> str:
    return (await fetch(server.application.http_address, "/metrics"))[1]


def times_in(page: str, name: str) -> dict[str, float]:
    """The samples of a family of times, in seconds since 1970, by their labels."""
    found = re.findall(rf"^lockstep_job_{name}_timestamp_seconds\{{(.*)\}} (\S+)$", page, re.MULTILINE)
    return {labels: float(seconds) for labels, seconds in found}


async def test_when_and_why_a_job_ended_is_seen_also_after_the_server_was_started_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1)
        assert times_in(await page_of(server), "end") == {}
        began = time.time()
        await launcher.gang_stopped(gang, "USER_ERROR")
        await server.reaches(gang.job_id, JOB_STATE_FAILED)
        ends = times_in(await page_of(server), "end")
        assert list(ends) == [f'job_id="{gang.job_id}",reason="USER_ERROR",state="failed"']
        assert began - 1 <= min(ends.values()) <= time.time()
    async with serving(tmp_path) as server:
        page = await page_of(server)
        assert times_in(page, "end") == ends
        assert "lockstep_jobs_finished_total{" not in page, "that counts what this process has seen"


async def test_when_a_job_began_to_train_is_seen_from_then_on(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    assert times_in(await page_of(server), "start") == {}
    began = time.time()
    await launcher.report(gang, 1)
    await server.reaches(gang.job_id, JOB_STATE_RUNNING)
    starts = times_in(await page_of(server), "start")
    assert list(starts) == [f'job_id="{gang.job_id}"']
    assert began - 1 <= min(starts.values()) <= time.time()


async def test_the_time_of_a_jobs_gpus_is_not_told_as_0_while_it_is_not_known(server: Running) -> None:
    launcher = await ready(server)
    await server.submit(resources={"workers": 1, "gpus_per_worker": 1})
    gang = await launcher.next_start()
    await launcher.report(gang, 1)
    row = rf'lockstep_gpu_seconds_total\{{cause="productive",job_id="{gang.job_id}"\}} (\S+)'
    page = await page_of(server)
    assert "lockstep_gpu_seconds_total{" in page
    assert re.findall(row, page) == []
    told = ReportLedgerRequest(job_id=gang.job_id, attempt=gang.attempt, sequence=1, node_id="node-a")
    told.seconds.CopyFrom(PhaseSeconds(forward_s=8.0))
    told.step_duration_counts.extend([0] * 16)
    metadata = (("lockstep-attempt-token", gang.attempt_token),)
    await InternalServiceStub(server.channel).ReportLedger(told, metadata=metadata)
    assert re.findall(row, await page_of(server)) == ["8.0"]
