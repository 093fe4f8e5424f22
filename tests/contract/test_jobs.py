from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.v1 import job_pb2
from lockstep.v1.checkpoint_service_pb2 import DownloadCheckpointRequest, ListCheckpointsRequest
from lockstep.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_CANCELLING,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_STARTING,
    JOB_STATE_SUCCEEDED,
)
from lockstep.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    ListJobsRequest,
    PauseJobRequest,
    ResumeJobRequest,
    SubmitJobRequest,
    UpdateJobRequest,
    WatchJobRequest,
)
from tests.support.server import Running, ScriptedLauncher, digits_spec, loss_at, serving, status_of, violations_of


async def submit(server: Running, request_id: str = "", **changes: object) -> job_pb2.Job:
    return await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(**changes), request_id=request_id))


async def test_a_job_goes_all_the_way(server: Running, launcher: ScriptedLauncher) -> None:
    job = await submit(server, resources={"workers": 2}, labels={"team": "x"})
    assert (job.state, job.attempt, job.spec.training.batch_size) == (JOB_STATE_QUEUED, 0, 32)
    gang = await launcher.next_start()
    assert (gang.job_id, gang.attempt, list(gang.node_ids)) == (job.job_id, 1, ["node-a", "node-a"])
    assert gang.spec == job.spec
    assert gang.coordinator_address == server.application.grpc_address
    await launcher.gang_started(gang)
    response = await launcher.report(gang, 1, step=1, points=[loss_at(1, 0.7)])
    assert response.acknowledged_sequence == 1
    running = await server.jobs.GetJob(GetJobRequest(job_id=job.job_id))
    assert (running.state, running.progress.step, running.hardware_class) == (JOB_STATE_RUNNING, 1, "cpu test")
    assert running.HasField("start_time")
    await launcher.report(gang, 2, step=100, digest="abc")
    ready = await server.jobs.GetJob(GetJobRequest(job_id=job.job_id))
    assert (ready.state, ready.progress.step) == (JOB_STATE_RUNNING, 100)
    assert not ready.HasField("result")
    assert not ready.HasField("end_time")
    await launcher.gang_stopped(gang)
    done = await server.reaches(job.job_id, JOB_STATE_SUCCEEDED)
    assert done.result.weights_digest == "abc"
    assert done.HasField("end_time")


async def test_a_bad_spec_is_answered_with_every_field_at_fault_and_nothing_is_stored(server: Running) -> None:
    error = await status_of(submit(server, optimizer={"sgd": {"learning_rate": math.nan}}, training={"batch_size": 0}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violations_of(error)) == {"optimizer.sgd.learning_rate", "training.batch_size"}
    assert not (await server.jobs.ListJobs(ListJobsRequest())).jobs


async def test_validate_only_stores_nothing(server: Running) -> None:
    job = await server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(), validate_only=True, request_id="k"))
    assert job.job_id == ""
    assert job.spec.training.max_epochs == 10
    assert not (await server.jobs.ListJobs(ListJobsRequest())).jobs


async def test_the_same_request_id_gives_the_same_job_also_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first = await submit(server, "key")
        assert await submit(server, "key") == first
        error = await status_of(submit(server, "key", name="other"))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    async with serving(tmp_path) as server:
        assert (await submit(server, "key")).job_id == first.job_id
        assert len((await server.jobs.ListJobs(ListJobsRequest())).jobs) == 1


async def test_a_repeated_request_is_answered_even_when_its_files_have_gone_since(tmp_path: Path) -> None:
    root = tmp_path / "mnist"
    root.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (root / f"{name}-ubyte").touch()

    data = {"idx": {"root": str(root)}}
    async with serving(tmp_path / "data") as server:
        first = await submit(server, "key", data=data)
        (root / "train-images-idx3-ubyte").unlink()
        assert await submit(server, "key", data=data) == first
        error = await status_of(submit(server, data=data))
        assert str(root) in violations_of(error)["data.idx.root"]


@pytest.mark.parametrize("request_id", ["x" * 129, "a\nb", "\u00e4"])
async def test_a_request_id_with_odd_characters_is_refused(server: Running, request_id: str) -> None:
    error = await status_of(submit(server, request_id))
    assert set(violations_of(error)) == {"request_id"}


TOO_SMALL = "the job asks for at least 3 workers x 1 CPU; the cluster has 2 CPUs and 0 GPUs on 1 node"


async def test_a_job_for_a_larger_cluster_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        error = await status_of(submit(server, resources={"workers": 4, "min_workers": 3}))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert TOO_SMALL in error.details()
        assert not (await server.jobs.ListJobs(ListJobsRequest())).jobs


async def test_a_job_that_asks_for_more_than_there_is_starts_with_what_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        launcher = server.launcher()
        await launcher.be_ready(cpus=2)
        job = await submit(server, resources={"workers": 8})
        assert job.spec.resources.min_workers == 1
        assert len((await launcher.next_start()).node_ids) == 2


async def test_a_check_for_a_larger_cluster_resolves_and_says_that_it_would_be_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        for resources, words in (
            ({"workers": 4, "min_workers": 3}, f"this cluster is too small for it: {TOO_SMALL}"),
            ({"workers": 4}, "checked only, nothing is stored"),
        ):
            request = SubmitJobRequest(spec=digits_spec(resources=resources), validate_only=True)
            checked = await server.jobs.SubmitJob(request)
            assert checked.spec.resources.shards == 4
            assert words in checked.state_reason
        assert not (await server.jobs.ListJobs(ListJobsRequest())).jobs


async def test_a_queued_job_that_turns_out_never_to_fit_fails_with_the_numbers(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=4) as server:
        job = await submit(server, resources={"workers": 4, "min_workers": 3})
        launcher = server.launcher()
        await launcher.be_ready(cpus=2)
        failed = await server.reaches(job.job_id, JOB_STATE_FAILED)
        assert failed.error.reason == "PLACEMENT_FAILED"
        assert "the cluster has 2 CPUs" in failed.error.message


async def test_a_cluster_that_has_lost_its_nodes_for_a_moment_fails_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        launcher = server.launcher()
        await launcher.be_ready(cpus=2)
        running = await submit(server, resources={"workers": 2, "min_workers": 2})
        gang = await launcher.next_start()
        waiting = await submit(server, resources={"workers": 2, "min_workers": 2})
        await launcher.offer({})
        await launcher.finish(gang, 1)
        await server.reaches(running.job_id, JOB_STATE_SUCCEEDED)
        assert (await server.jobs.GetJob(GetJobRequest(job_id=waiting.job_id))).state == JOB_STATE_QUEUED
        await launcher.offer({"node-b": (2, 0)})
        assert (await launcher.next_start()).job_id == waiting.job_id


@pytest.mark.parametrize("job_id", ["job-none", "", "\0", "x" * 10_000])
async def test_unknown_jobs_are_not_found(tmp_path: Path, job_id: str) -> None:
    expected = grpc.StatusCode.NOT_FOUND if job_id else grpc.StatusCode.INVALID_ARGUMENT

    async with serving(tmp_path) as server:
        calls: list[Any] = [
            server.jobs.GetJob(GetJobRequest(job_id=job_id)),
            server.jobs.CancelJob(CancelJobRequest(job_id=job_id)),
            server.jobs.PauseJob(PauseJobRequest(job_id=job_id)),
            server.jobs.ResumeJob(ResumeJobRequest(job_id=job_id)),
            server.jobs.UpdateJob(UpdateJobRequest(job_id=job_id)),
            server.jobs.UpdateJob(UpdateJobRequest(job_id=job_id, workers=1)),
            server.jobs.WatchJob(WatchJobRequest(job_id=job_id)).read(),
            server.checkpoints.ListCheckpoints(ListCheckpointsRequest(job_id=job_id)),
            server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=job_id)).read(),
        ]
        assert [(await status_of(call)).code() for call in calls] == [expected] * len(calls)
        if job_id:
            told = await status_of(server.jobs.GetJob(GetJobRequest(job_id=job_id)))
            assert told.details().endswith("; see `lockstep ls`, or call ListJobs, for those there are")


async def test_a_queued_job_is_cancelled_at_once(server: Running) -> None:
    job = await submit(server)
    for _ in range(2):
        cancelled = await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
        assert cancelled.state == JOB_STATE_CANCELLED
    assert server.coordinator.counts() == {"entries": 0, "holding": 0}


async def test_a_running_job_is_stopped_and_then_cancelled(server: Running, launcher: ScriptedLauncher) -> None:
    job = await submit(server)
    gang = await launcher.next_start()
    await launcher.report(gang, 1)
    cancelling = await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    assert cancelling.state == JOB_STATE_CANCELLING
    stop = await launcher.next_stop()
    assert (stop.job_id, stop.attempt, stop.grace_s) == (job.job_id, 1, 10.0)
    await launcher.report(gang, 2, digest="late")
    await launcher.gang_stopped(gang, "WORKER_LOST")
    cancelled = await server.reaches(job.job_id, JOB_STATE_CANCELLED)
    assert not cancelled.HasField("result")
    assert not cancelled.HasField("error")


async def test_a_job_that_succeeded_cannot_be_cancelled(server: Running, launcher: ScriptedLauncher) -> None:
    job = await submit(server)
    await launcher.finish(await launcher.next_start(), 1)
    await server.reaches(job.job_id, JOB_STATE_SUCCEEDED)
    error = await status_of(server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_watcher_sees_every_event_and_the_end(server: Running) -> None:
    launcher = server.launcher()
    job = await submit(server)
    call = server.jobs.WatchJob(WatchJobRequest(job_id=job.job_id))
    responses = aiter(call)
    first = await anext(responses)
    assert [event.sequence for event in first.events] == [1]
    await launcher.be_ready()
    gang = await launcher.next_start()
    for sequence in range(1, 30):
        await launcher.report(gang, sequence, step=sequence)
    await launcher.finish(gang, 30, step=30)
    events, last = list(first.events), first.job
    async for response in responses:
        events += response.events
        last = response.job
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events] == [
        JOB_STATE_QUEUED,
        JOB_STATE_STARTING,
        JOB_STATE_RUNNING,
        JOB_STATE_SUCCEEDED,
    ]
    assert last.state == JOB_STATE_SUCCEEDED


async def test_progress_alone_reaches_a_watcher(server: Running, launcher: ScriptedLauncher) -> None:
    job = await submit(server)
    gang = await launcher.next_start()
    await launcher.report(gang, 1, step=1)
    call: Any = server.jobs.WatchJob(WatchJobRequest(job_id=job.job_id))
    assert (await call.read()).job.progress.step == 1
    await launcher.report(gang, 2, step=2)
    response = await call.read()
    assert (response.job.progress.step, len(response.events)) == (2, 0)
    call.cancel()


async def test_a_watch_resumes_after_the_last_event_seen(server: Running) -> None:
    job = await submit(server)
    await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    for after, expected in ((0, [1, 2]), (1, [2]), (2, []), (99, [])):
        request = WatchJobRequest(job_id=job.job_id, after_sequence=after)
        responses = [response async for response in server.jobs.WatchJob(request)]
        assert [event.sequence for response in responses for event in response.events] == expected
        assert responses[-1].job.state == JOB_STATE_CANCELLED
    request = WatchJobRequest(job_id=job.job_id, after_sequence=-1)
    assert set(violations_of(await status_of(server.jobs.WatchJob(request).read()))) == {"after_sequence"}


async def test_watchers_that_leave_are_forgotten(server: Running) -> None:
    job = await submit(server)
    call = server.jobs.WatchJob(WatchJobRequest(job_id=job.job_id))
    await call.read()
    call.cancel()
    while server.parts.notifier.count():
        await server.jobs.GetJob(GetJobRequest(job_id=job.job_id))


async def test_a_shutdown_ends_streams_as_unavailable_so_that_clients_come_back(server: Running) -> None:
    job = await submit(server)
    call = server.jobs.WatchJob(WatchJobRequest(job_id=job.job_id))
    await call.read()
    ended = asyncio.ensure_future(status_of(call.read()))
    await server.application.stop()
    assert (await ended).code() is grpc.StatusCode.UNAVAILABLE


async def test_first_come_is_first_served_and_the_head_is_not_overtaken(server: Running) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=2)
    running = await submit(server)
    gang = await launcher.next_start()
    wide = await submit(server, resources={"workers": 2, "min_workers": 2})
    narrow = await submit(server)
    await launcher.finish(gang, 1)
    await server.reaches(running.job_id, JOB_STATE_SUCCEEDED)
    second = await launcher.next_start()
    assert second.job_id == wide.job_id
    await launcher.gang_stopped(second, "USER_ERROR")
    assert (await launcher.next_start()).job_id == narrow.job_id
    assert (await server.reaches(wide.job_id, JOB_STATE_FAILED)).error.reason == "USER_ERROR"
    assert (await server.jobs.GetJob(GetJobRequest(job_id=narrow.job_id))).state == JOB_STATE_STARTING
