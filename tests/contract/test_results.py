"""A job has succeeded once its result is stored and its workers are gone; until then it shows nothing of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_CANCELLING,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from lockstep.v1.job_service_pb2 import CancelJobRequest, ListJobsRequest, UpdateJobRequest
from tests.support.server import Running, ScriptedLauncher, changed, serving, status_of

PAIR = ["node-a", "node-a"]


async def start_job(server: Running, **changes: object) -> tuple[ScriptedLauncher, StartGang]:
    launcher = server.launcher()
    await launcher.be_ready()
    await server.submit(**({"resources": {"workers": 2}, "recovery": {"max_restarts": 0}} | changes))
    return launcher, await launcher.next_start()


def shows_nothing_yet(job: Job) -> bool:
    return (job.state, job.HasField("result"), job.HasField("end_time")) == (JOB_STATE_RUNNING, False, False)


async def has_succeeded(server: Running, job_id: str) -> None:
    job = await server.reaches(job_id, JOB_STATE_SUCCEEDED)
    assert (job.result.weights_digest, job.attempt, job.restarts, job.HasField("error")) == ("abc", 1, 0, False)
    assert job.HasField("end_time")
    assert (await server.messages(job_id))[-1] == "all steps are done"
    assert server.coordinator.counts() == {"entries": 0, "holding": 0}


@pytest.mark.parametrize(
    ("reason", "is_too_small"),
    [("", False), ("", True), ("WORKER_LOST", False), ("PLACEMENT_FAILED", False), ("USER_ERROR", False)],
)
async def test_a_result_is_shown_when_the_workers_are_gone_whatever_became_of_them(
    server: Running, reason: str, is_too_small: bool
) -> None:
    launcher, gang = await start_job(server)
    await launcher.report(gang, 1, digest="abc")
    assert shows_nothing_yet(await server.get(gang.job_id))
    [listed] = (await server.jobs.ListJobs(ListJobsRequest())).jobs
    assert shows_nothing_yet(listed)
    await launcher.gang_changed(gang, ["node-a"], message="a worker was lost")
    assert "a worker was lost" in await server.messages(gang.job_id, 4)
    assert shows_nothing_yet(await server.get(gang.job_id))
    await launcher.gang_stopped(gang, reason, is_too_small=is_too_small)
    await has_succeeded(server, gang.job_id)


async def test_a_job_that_has_its_result_is_not_resized(server: Running) -> None:
    launcher, gang = await start_job(server)
    await launcher.report(gang, 1, digest="abc")
    await launcher.offer({"node-a": (3, 0)})
    for workers in (3, 1):
        await server.jobs.UpdateJob(UpdateJobRequest(job_id=gang.job_id, workers=workers))
    other = await server.submit()
    # The next order would have been to resize it.
    assert (await launcher.next_start()).job_id == other.job_id


@pytest.mark.parametrize("is_stopped_first", [False, True])
async def test_a_job_that_is_cancelled_after_its_result_shows_none(tmp_path: Path, is_stopped_first: bool) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, digest="abc")
        cancelling = await server.jobs.CancelJob(CancelJobRequest(job_id=gang.job_id))
        assert (cancelling.state, cancelling.HasField("result")) == (JOB_STATE_CANCELLING, False)
        await launcher.next_stop()
        if is_stopped_first:
            await launcher.report(gang, 2, digest="abc")
        await launcher.gang_stopped(gang)
        job = await server.reaches(gang.job_id, JOB_STATE_CANCELLED)
        assert not job.HasField("result")
    async with serving(tmp_path) as server:
        job = await server.get(gang.job_id)
        assert (job.state, job.HasField("result")) == (JOB_STATE_CANCELLED, False)


@pytest.mark.parametrize("who", ["server", "launcher"])
@pytest.mark.parametrize("are_there", [True, False])
async def test_a_job_with_a_result_succeeds_also_when_server_or_launcher_change_meanwhile(
    tmp_path: Path, who: str, are_there: bool
) -> None:
    async def come_back(server: Running, gang: StartGang) -> None:
        launcher = server.launcher()
        # The answer to the last report was lost, and it comes again.
        assert (await launcher.report(gang, 1, digest="abc")).acknowledged_sequence == 1
        assert (await status_of(launcher.report(gang, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
        assert shows_nothing_yet(await server.get(gang.job_id))
        waiting = await server.submit(resources={"workers": 2, "min_workers": 2})
        await launcher.be_ready(gangs=[changed(gang, PAIR)] if are_there else [])
        if are_there:
            await server.until(gang.job_id, lambda job: job.running_workers == 2)
            assert (await server.get(waiting.job_id)).state == JOB_STATE_QUEUED
            await launcher.gang_stopped(gang)
        started = await launcher.next_start()
        assert started.job_id == waiting.job_id
        await launcher.gang_stopped(started, "USER_ERROR")
        await server.messages(waiting.job_id)  # until it has ended
        await has_succeeded(server, gang.job_id)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, digest="abc")
        await launcher.leave()
        if who == "launcher":
            await come_back(server, gang)
    if who == "server":
        async with serving(tmp_path) as server:
            await come_back(server, gang)


@pytest.mark.parametrize("reason", ["", "WORKER_LOST"])
async def test_a_job_with_a_result_succeeds_during_a_shutdown(tmp_path: Path, reason: str) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, digest="abc")
        stopping = asyncio.ensure_future(server.application.stop())
        await launcher.next_drain()
        await launcher.next_stop()
        await launcher.gang_stopped(gang, reason)
        await stopping
    async with serving(tmp_path) as server:
        await has_succeeded(server, gang.job_id)
