"""Pausing, resuming, growing and shrinking."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from lockstep.server.coordinator import gangs
from lockstep.server.jobs import lifecycle
from lockstep.v1.internal_service_pb2 import LauncherReady, StartGang
from lockstep.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_CANCELLING,
    JOB_STATE_FAILED,
    JOB_STATE_PAUSED,
    JOB_STATE_PAUSING,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_STARTING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from lockstep.v1.job_service_pb2 import (
    CancelJobRequest,
    ListJobsRequest,
    PauseJobRequest,
    ResumeJobRequest,
    UpdateJobRequest,
)
from tests.support.server import Running, ScriptedLauncher, changed, serving, status_of, violations_of

PAIR = ["node-a", "node-a"]


async def start_job(server: Running, *, cpus: float = 2.0, **changes: object) -> tuple[ScriptedLauncher, StartGang]:
    launcher = server.launcher()
    await launcher.be_ready(cpus=cpus)
    await server.submit(**({"resources": {"workers": 2}} | changes))
    return launcher, await launcher.next_start()


async def pause(server: Running, job_id: str) -> Job:
    return await server.jobs.PauseJob(PauseJobRequest(job_id=job_id))


async def resume(server: Running, job_id: str) -> Job:
    return await server.jobs.ResumeJob(ResumeJobRequest(job_id=job_id))


async def cancel(server: Running, job_id: str) -> Job:
    return await server.jobs.CancelJob(CancelJobRequest(job_id=job_id))


async def scale(server: Running, job_id: str, workers: int) -> Job:
    return await server.jobs.UpdateJob(UpdateJobRequest(job_id=job_id, workers=workers))


async def test_a_paused_job_frees_its_resources_and_goes_on_when_it_is_resumed(server: Running) -> None:
    launcher, gang = await start_job(server)
    await launcher.report(gang, 1, step=7)
    waiting = await server.submit()
    for _ in range(2):
        assert (await pause(server, gang.job_id)).state == JOB_STATE_PAUSING
    stop = await launcher.next_stop()
    assert (stop.job_id, stop.attempt, stop.keep, stop.grace_s) == (gang.job_id, 1, True, 60.0)
    error = await status_of(resume(server, gang.job_id))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "still pausing; wait until it is PAUSED" in error.details()
    await launcher.report(gang, 2, step=8)
    await launcher.gang_stopped(gang)
    other = await launcher.next_start()
    assert other.job_id == waiting.job_id
    paused = await server.get(gang.job_id)
    assert (paused.state, paused.progress.step, paused.running_workers) == (JOB_STATE_PAUSED, 8, 0)
    assert (await pause(server, gang.job_id)).state == JOB_STATE_PAUSED
    assert (await resume(server, gang.job_id)).state == JOB_STATE_QUEUED
    again = await launcher.next_start()
    assert (again.job_id, again.attempt) == (gang.job_id, 2)
    job = await resume(server, gang.job_id)
    assert (job.state, job.restarts) == (JOB_STATE_STARTING, 0)


async def test_a_resumed_job_is_back_at_its_old_place_in_the_queue_also_on_the_next_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first, second = [await server.submit(resources={"workers": 2, "min_workers": 2}) for _ in range(2)]
        assert (await pause(server, first.job_id)).state == JOB_STATE_PAUSED
    async with serving(tmp_path) as server:
        assert (await server.get(first.job_id)).state == JOB_STATE_PAUSED
        await resume(server, first.job_id)
        launcher = server.launcher()
        await launcher.be_ready()
        gang = await launcher.next_start()
        assert gang.job_id == first.job_id
        await launcher.finish(gang, 1)
        assert (await launcher.next_start()).job_id == second.job_id


async def test_a_paused_job_is_not_started_and_can_be_cancelled_at_once(server: Running) -> None:
    paused, other = await server.submit(), await server.submit()
    await pause(server, paused.job_id)
    launcher = server.launcher()
    await launcher.be_ready()
    assert (await launcher.next_start()).job_id == other.job_id
    assert (await cancel(server, paused.job_id)).state == JOB_STATE_CANCELLED
    assert server.coordinator.counts() == {"entries": 1, "holding": 1}


async def test_a_job_that_pauses_can_be_cancelled_and_one_that_is_cancelled_cannot_be_paused(server: Running) -> None:
    launcher, gang = await start_job(server)
    await pause(server, gang.job_id)
    assert (await cancel(server, gang.job_id)).state == JOB_STATE_CANCELLING
    assert [(await launcher.next_stop()).keep for _ in range(2)] == [True, False]
    for call in (pause(server, gang.job_id), resume(server, gang.job_id)):
        assert (await status_of(call)).code() is grpc.StatusCode.FAILED_PRECONDITION
    await launcher.gang_stopped(gang)
    await server.reaches(gang.job_id, JOB_STATE_CANCELLED)
    for call in (pause(server, gang.job_id), resume(server, gang.job_id), scale(server, gang.job_id, 1)):
        error = await status_of(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "has been cancelled; only a job that has not ended can be" in error.details()


@pytest.mark.parametrize(
    ("reason", "state"), [("WORKER_LOST", JOB_STATE_PAUSED), ("USER_ERROR", JOB_STATE_FAILED), ("", JOB_STATE_PAUSED)]
)
async def test_how_the_workers_of_a_job_end_that_pauses(server: Running, reason: str, state: int) -> None:
    launcher, gang = await start_job(server)
    await pause(server, gang.job_id)
    await launcher.next_stop()
    await launcher.gang_stopped(gang, reason)
    assert (await server.reaches(gang.job_id, state)).restarts == 0


async def test_a_job_that_was_faster_than_its_pause_has_succeeded(server: Running) -> None:
    launcher, gang = await start_job(server)
    await pause(server, gang.job_id)
    await launcher.report(gang, 1, digest="abc")
    job = await server.get(gang.job_id)
    assert (job.state, job.HasField("result")) == (JOB_STATE_PAUSING, False)
    await launcher.gang_stopped(gang)
    assert (await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)).result.weights_digest == "abc"


async def test_a_running_job_shrinks_and_grows(server: Running) -> None:
    launcher, gang = await start_job(server, cpus=3)
    await launcher.report(gang, 1)
    assert (await scale(server, gang.job_id, 1)).spec.resources.workers == 1
    resize = await launcher.next_resize()
    assert (resize.job_id, resize.attempt, resize.revision) == (gang.job_id, 1, 1)
    assert (list(resize.node_ids), resize.epoch) == (["node-a"], gang.epoch)
    await launcher.gang_changed(gang, ["node-a"], revision=1, message="a worker left")
    shrunk = await server.until(gang.job_id, lambda job: job.running_workers == 1)
    assert shrunk.state == JOB_STATE_RUNNING
    await scale(server, gang.job_id, 3)
    resize = await launcher.next_resize()
    assert (resize.revision, list(resize.node_ids)) == (2, ["node-a"] * 3)
    await launcher.gang_changed(gang, ["node-a"] * 3, revision=2, running=1)
    await launcher.gang_changed(gang, ["node-a"] * 3, revision=2)
    await server.until(gang.job_id, lambda job: job.running_workers == 3)
    [listed] = (await server.jobs.ListJobs(ListJobsRequest())).jobs
    assert listed.running_workers == 3
    await launcher.finish(gang, 2)
    assert (await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)).running_workers == 0
    assert [text for text in await server.messages(gang.job_id) if "worker" in text] == [
        "starting 2 workers on 1 node",
        "resources.workers changed from 2 to 1 by the user",
        "a worker left",
        "resources.workers changed from 1 to 3 by the user",
    ]


async def test_the_new_number_of_workers_is_kept_by_the_next_server_and_used_by_the_next_attempt(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        job = await server.submit()
        assert (await scale(server, job.job_id, 2)).state == JOB_STATE_QUEUED
        digest = job.curve_digest
    async with serving(tmp_path) as server:
        job = await server.get(job.job_id)
        assert (job.spec.resources.workers, job.curve_digest) == (2, digest)
        launcher = server.launcher()
        await launcher.be_ready()
        assert list((await launcher.next_start()).node_ids) == PAIR


async def test_workers_beyond_the_limits_are_refused_by_the_fields_name_and_nothing_is_nothing(server: Running) -> None:
    submitted = await server.submit(resources={"workers": 2, "min_workers": 2, "shards": 3})
    job = await server.get(submitted.job_id)
    for workers in (-1, 0, 1, 4):
        error = await status_of(scale(server, job.job_id, workers))
        assert violations_of(error)["workers"].startswith(f"workers is {workers}; allowed: 2 to 3")
    assert await server.jobs.UpdateJob(UpdateJobRequest(job_id=job.job_id)) == job
    assert await scale(server, job.job_id, 2) == job


async def test_an_elastic_job_starts_with_what_is_free_and_grows_when_there_is_more(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        launcher, gang = await start_job(server, cpus=2, resources={"workers": 4, "min_workers": 1})
        assert list(gang.node_ids) == PAIR
        assert (await server.get(gang.job_id)).state_reason.startswith("starting 2 workers on 1 node, of 4 that it")
        await launcher.gang_started(gang)
        await server.until(gang.job_id, lambda job: job.running_workers == 2)
        await launcher.offer({"node-a": (2, 0), "node-b": (1, 0)})
        assert list((await launcher.next_resize()).node_ids) == [*PAIR, "node-b"]


async def test_a_job_does_not_grow_while_another_one_waits(server: Running) -> None:
    launcher, gang = await start_job(server, cpus=3, resources={"workers": 4, "min_workers": 1})
    wide = await server.submit(resources={"workers": 2, "min_workers": 2})
    await launcher.gang_changed(gang, ["node-a"])
    assert (await launcher.next_start()).job_id == wide.job_id
    await launcher.offer({"node-a": (4, 0)})
    assert list((await launcher.next_resize()).node_ids) == PAIR


async def test_a_job_for_a_larger_cluster_is_taken_when_its_fewest_workers_fit(tmp_path: Path) -> None:
    async with serving(tmp_path, num_cpus=2) as server:
        await server.submit(resources={"workers": 4})  # min_workers is 1
        error = await status_of(server.submit(resources={"workers": 4, "min_workers": 3}))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "the job asks for at least 3 workers x 1 CPU; the cluster has 2 CPUs" in error.details()


async def test_what_a_gang_gives_up_is_given_to_others_when_it_has_left(server: Running) -> None:
    launcher, gang = await start_job(server)
    waiting = await server.submit()
    await scale(server, gang.job_id, 1)
    assert (await launcher.next_resize()).revision == 1
    assert (await server.get(waiting.job_id)).state == JOB_STATE_QUEUED
    # Status from before the order: they still hold both.
    await launcher.gang_changed(gang, ["node-a"], revision=0, message="a worker was lost")
    while "a worker was lost" not in await server.messages(gang.job_id, 4):
        pass
    assert (await server.get(waiting.job_id)).state == JOB_STATE_QUEUED
    await launcher.gang_changed(gang, ["node-a"], revision=1)
    assert (await launcher.next_start()).job_id == waiting.job_id


async def test_a_gang_that_lost_a_worker_grows_back_and_waits_longer_each_time_that_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gangs, "FIRST_RESIZE_DELAY_S", 0.02)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        loop = asyncio.get_running_loop()
        for revision in range(4):
            told = loop.time()
            await launcher.gang_changed(gang, ["node-a"], revision=revision)
            resize = await launcher.next_resize()
            assert loop.time() - told >= 0.02 * 2**revision
            assert (resize.revision, list(resize.node_ids)) == (revision + 1, PAIR)


async def test_a_user_who_scales_waits_for_no_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_RESIZE_DELAY_S", "LONGEST_RESIZE_DELAY_S"):
        monkeypatch.setattr(gangs, name, 3600.0)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server, cpus=3)
        await launcher.gang_changed(gang, ["node-a"])
        await server.until(gang.job_id, lambda job: job.running_workers == 1)
        await scale(server, gang.job_id, 3)
        assert list((await launcher.next_resize()).node_ids) == ["node-a"] * 3


async def test_a_node_whose_workers_were_refused_is_tried_again_only_when_the_user_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_RESIZE_DELAY_S", "LONGEST_RESIZE_DELAY_S"):
        monkeypatch.setattr(gangs, name, 0.0)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        nodes = {"node-a": (2.0, 0.0), "node-odd": (1.0, 0.0)}
        await launcher.offer(nodes)
        await scale(server, gang.job_id, 3)
        assert list((await launcher.next_resize()).node_ids) == [*PAIR, "node-odd"]
        refusal = changed(gang, PAIR, revision=1, message="worker 2 cannot join")
        refusal.refused_node_ids.append("node-odd")
        await launcher.say(gang_changed=refusal)
        assert "worker 2 cannot join" in await server.messages(gang.job_id, 4)
        await launcher.leave()
        # The next launcher need not find it out again.
        second = server.launcher()
        await second.say(ready=LauncherReady(epoch=gang.epoch, gangs=[changed(gang, PAIR, revision=1)]))
        await second.offer(nodes | {"node-c": (1.0, 0.0)})
        assert list((await second.next_resize()).node_ids) == [*PAIR, "node-c"]
        await second.offer(nodes)
        await second.gang_changed(gang, PAIR, revision=2)
        await scale(server, gang.job_id, 4)
        assert list((await second.next_resize()).node_ids) == [*PAIR, "node-odd"]


async def test_a_gang_that_is_too_small_waits_in_the_queue(server: Running) -> None:
    launcher, gang = await start_job(server, resources={"workers": 2, "min_workers": 2})
    await launcher.report(gang, 1, step=4)
    await launcher.offer({"node-a": (1, 0)})
    await launcher.gang_stopped(gang, is_too_small=True)
    job = await server.reaches(gang.job_id, JOB_STATE_QUEUED)
    assert (job.restarts, job.progress.step) == (0, 4)
    await launcher.offer({"node-a": (2, 0)})
    assert (await launcher.next_start()).attempt == 2


@pytest.mark.parametrize("what", ["pause and resume", "scale"])
async def test_a_job_that_waits_for_its_next_attempt_waits_no_longer_when_the_user_looks_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(lifecycle, "FIRST_RESTART_DELAY_S", 3600.0)
    monkeypatch.setattr(lifecycle, "LONGEST_RESTART_DELAY_S", 3600.0)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.gang_stopped(gang, "WORKER_LOST")
        await server.reaches(gang.job_id, JOB_STATE_QUEUED)
        if what == "scale":
            await scale(server, gang.job_id, 1)
        else:
            assert (await pause(server, gang.job_id)).state == JOB_STATE_PAUSED
            await resume(server, gang.job_id)
        async with asyncio.timeout(10):
            assert (await launcher.next_start()).attempt == 2
