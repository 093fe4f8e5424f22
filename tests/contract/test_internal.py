from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from lockstep.v1.internal_service_pb2 import LauncherReady, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_CANCELLING,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from lockstep.v1.job_service_pb2 import CancelJobRequest, GetJobRequest, SubmitJobRequest, WatchJobRequest
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.unit.server.harness import Running, ScriptedLauncher, digits_spec, loss_at, run, serving, status_of


async def start_job(server: Running, **changes: object) -> tuple[ScriptedLauncher, StartGang]:
    launcher = server.launcher()
    await launcher.be_ready()
    await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(**changes)))
    return launcher, await launcher.next_start()


async def get(server: Running, job_id: str) -> Job:
    return await server.jobs.GetJob(GetJobRequest(job_id=job_id))


async def messages(server: Running, job_id: str) -> list[str]:
    """Return the messages of all events of a job that has ended."""
    responses = [r async for r in server.jobs.WatchJob(WatchJobRequest(job_id=job_id))]
    return [event.message for response in responses for event in response.events]


def test_a_launcher_without_the_token_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            for token in ("wrong", ""):
                call = InternalServiceStub(server.channel).ConnectLauncher(
                    metadata=(("lockstep-launcher-token", token),)
                )
                assert (await status_of(call.read())).code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario())


def test_a_launcher_of_another_epoch_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher = server.launcher()
            await launcher.say(ready=LauncherReady(epoch=99))
            assert (await status_of(launcher.call.read())).code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario())


def test_a_report_is_taken_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            for _ in range(2):
                response = await launcher.report(gang, 1, step=1, points=[loss_at(1, 0.5)])
                assert response.acknowledged_sequence == 1
            await launcher.report(gang, 2, step=2)
            assert (await launcher.report(gang, 1, step=1)).acknowledged_sequence == 2
            assert (await get(server, gang.job_id)).progress.step == 2
            listed = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
            assert len(listed.points) == 1

    run(scenario())


def test_the_last_report_is_acknowledged_again_when_the_first_answer_was_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            for _ in range(2):
                assert (await launcher.report(gang, 1, digest="abc")).acknowledged_sequence == 1
            error = await status_of(launcher.report(gang, 2))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED

    run(scenario())


def test_reports_of_others_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            for changes in ({"token": "wrong"}, {"token": ""}, {"attempt": 2}, {"job_id": "job-other"}):
                error = await status_of(launcher.report(gang, 1, **changes))  # type: ignore[arg-type]
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert (await get(server, gang.job_id)).progress.step == 0

    run(scenario())


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("sequence", {"sequence": 0}),
        ("sequence", {"sequence": -1}),
        ("sequence", {"sequence": 7}),
        ("points[0].name", {"points": [loss_at(1, 0.5, "")]}),
        ("points[0].name", {"points": [loss_at(1, 0.5, "x" * 129)]}),
        ("points[1].step", {"points": [loss_at(1, 0.5), loss_at(0, 0.5)]}),
        ("points[0].kind", {"points": [loss_at(1, 0.5, kind=0)]}),
        ("points[0].kind", {"points": [loss_at(1, 0.5, kind=9)]}),
        ("progress", {"step": -1}),
    ],
)
def test_a_malformed_report_is_refused_and_changes_nothing(
    tmp_path: Path, field: str, changes: dict[str, object]
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            given = {"sequence": 1} | changes
            error = await status_of(launcher.report(gang, **given))  # type: ignore[arg-type]
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details().startswith(field)
            assert (await launcher.report(gang, 1)).acknowledged_sequence == 1

    run(scenario())


def test_a_lost_worker_starts_the_next_attempt_and_fences_the_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, first = await start_job(server)
            await launcher.report(first, 1, step=5, points=[loss_at(1, 0.5)])
            await launcher.gang_stopped(first, "WORKER_LOST", "Rank 1 was killed.")
            second = await launcher.next_start()
            assert (second.attempt, second.attempt_token != first.attempt_token) == (2, True)
            assert (await status_of(launcher.report(first, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
            job = await get(server, first.job_id)
            assert (job.restarts, job.progress.step) == (1, 0)
            # The curve comes again and is the same; a value that differs is told.
            await launcher.report(second, 1, points=[loss_at(1, 0.5), loss_at(2, 0.4)])
            await launcher.report(second, 2, points=[loss_at(2, 0.4)], digest="abc")
            assert not [text for text in await messages(server, first.job_id) if "DIFFERS" in text]

    run(scenario())


def test_a_curve_that_differs_in_the_next_attempt_is_an_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, first = await start_job(server)
            await launcher.report(first, 1, points=[loss_at(1, 0.5)])
            await launcher.gang_stopped(first, "WORKER_LOST")
            second = await launcher.next_start()
            await launcher.report(second, 1, points=[loss_at(1, 0.6)], digest="abc")
            assert len([text for text in await messages(server, first.job_id) if "THE CURVE DIFFERS" in text]) == 1

    run(scenario())


def test_workers_lost_too_often_fail_the_job(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server, recovery={"max_restarts": 1})
            await launcher.gang_stopped(gang, "WORKER_LOST")
            await launcher.gang_stopped(await launcher.next_start(), "WORKER_LOST", "Rank 0 was killed.")
            job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
            assert (job.error.reason, job.restarts) == ("WORKER_LOST", 1)
            assert job.error.message == "Rank 0 was killed. The job may not start again: recovery.max_restarts is 1."

    run(scenario())


def test_an_error_of_the_users_reaches_the_job_as_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            await launcher.gang_stopped(gang, "DATA_INVALID", "The file is truncated.")
            job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
            assert (job.error.reason, job.error.message) == ("DATA_INVALID", "The file is truncated.")
            assert server.coordinator.counts() == {"entries": 0, "holding": 0}

    run(scenario())


def test_resources_are_free_only_when_the_gang_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server, resources={"workers": 2})
            waiting = await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec()))
            await launcher.report(gang, 1, digest="abc")
            assert (await get(server, gang.job_id)).state == JOB_STATE_SUCCEEDED
            assert (await get(server, waiting.job_id)).state == JOB_STATE_QUEUED
            await launcher.gang_stopped(gang)
            assert (await launcher.next_start()).job_id == waiting.job_id

    run(scenario())


def test_a_launcher_that_is_lost_sends_its_jobs_back_to_the_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server, resources={"workers": 2})
            await launcher.report(gang, 1)
            await launcher.leave()
            job = await server.reaches(gang.job_id, JOB_STATE_QUEUED)
            assert (job.restarts, job.state_reason.startswith("the launcher was lost")) == (0, True)
            assert (await status_of(launcher.report(gang, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
            second = server.launcher()
            await second.be_ready()
            again = await second.next_start()
            assert (again.job_id, again.attempt) == (gang.job_id, 2)

    run(scenario())


def test_a_new_launcher_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            first, gang = await start_job(server)
            await first.report(gang, 1)
            second = server.launcher()
            await second.be_ready()
            assert (await second.next_start()).attempt == 2
            assert (await status_of(first.call.read())).code() is grpc.StatusCode.UNAVAILABLE
            # What the first one still says is about gangs that are given up.
            assert (await get(server, gang.job_id)).attempt == 2

    run(scenario())


def test_a_job_that_is_stopping_when_the_launcher_is_lost_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            await server.jobs.CancelJob(CancelJobRequest(job_id=gang.job_id))
            await launcher.leave()
            await server.reaches(gang.job_id, JOB_STATE_CANCELLED)

    run(scenario())


def test_a_restarted_server_knows_its_jobs_and_takes_no_report_of_the_old_workers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            launcher, running = await start_job(server, resources={"workers": 2})
            await launcher.report(running, 1, step=7, points=[loss_at(1, 0.5)])
            queued = await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec()))
            assert (await get(server, running.job_id)).state == JOB_STATE_RUNNING
        async with serving(tmp_path) as server:
            assert (await get(server, queued.job_id)).state == JOB_STATE_QUEUED
            job = await get(server, running.job_id)
            assert (job.state, job.restarts, job.progress.step) == (JOB_STATE_QUEUED, 0, 0)
            assert job.state_reason.startswith("the server was restarted")
            launcher = server.launcher()
            assert (await status_of(launcher.report(running, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
            await launcher.be_ready()
            again = await launcher.next_start()
            assert (again.job_id, again.attempt, again.epoch) == (running.job_id, 2, running.epoch + 1)
            await launcher.report(again, 1, points=[loss_at(1, 0.5)], digest="abc")
            await launcher.gang_stopped(again)
            last = await launcher.next_start()
            assert last.job_id == queued.job_id
            await launcher.report(last, 1, digest="abc")
            assert (await get(server, queued.job_id)).state == JOB_STATE_SUCCEEDED

    run(scenario())


def test_a_job_that_was_stopping_when_the_server_died_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            _, gang = await start_job(server)
            job = await server.jobs.CancelJob(CancelJobRequest(job_id=gang.job_id))
            assert job.state == JOB_STATE_CANCELLING
        async with serving(tmp_path) as server:
            assert (await get(server, gang.job_id)).state == JOB_STATE_CANCELLED

    run(scenario())
