"""What a job says of itself: why it waits, and what it has failed of."""

from __future__ import annotations

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED
from lockstep.v1.job_service_pb2 import ListJobsRequest, WatchJobRequest
from tests.support.server import Running, ScriptedLauncher


async def test_a_job_that_waits_says_for_how_much_and_behind_whom(server: Running) -> None:
    first = await server.submit(resources={"workers": 2, "min_workers": 2})
    assert (await server.get(first.job_id)).state_reason.startswith("no launcher is in service yet")
    launcher = server.launcher()
    await launcher.be_ready()
    gang = await launcher.next_start()
    small = {"workers": 1, "min_workers": 1}
    waiting = [await server.submit(resources=part) for part in ({"workers": 2}, small, small)]
    ids = [job.job_id for job in waiting]
    room = "room for 0 now (0 of 2 CPUs free)"
    reasons = [
        f"waits for 2 workers, or at least 1, with 1 CPU each; {room}",
        f"waits behind {ids[0]} for 1 worker with 1 CPU each; {room}",
        f"waits behind {ids[0]} and 1 other for 1 worker with 1 CPU each; {room}",
    ]
    assert [(await server.get(job_id)).state_reason for job_id in ids] == reasons
    listed = (await server.jobs.ListJobs(ListJobsRequest(states=[JOB_STATE_QUEUED]))).jobs
    assert [job.state_reason for job in listed] == reasons[::-1]
    update = await anext(aiter(server.jobs.WatchJob(WatchJobRequest(job_id=ids[1]))))
    assert update.job.state_reason == reasons[1]
    assert await server.messages(ids[1], 1) == ["submitted"]
    await launcher.report(gang, 1)
    assert "waits" not in (await server.get(gang.job_id)).state_reason


async def test_what_a_job_failed_of_is_said_once(server: Running, launcher: ScriptedLauncher, gang: StartGang) -> None:
    await launcher.gang_stopped(gang, "USER_ERROR")
    job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
    assert (job.error.reason, job.error.message) == ("USER_ERROR", "it broke")
    assert job.state_reason == "USER_ERROR"
    assert (await server.messages(gang.job_id))[-1] == "USER_ERROR"
