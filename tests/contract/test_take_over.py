"""Workers go on without launcher and server; what those find when they come back is set right."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import grpc
import pytest

from lockstep.server.coordinator import dispatcher
from lockstep.server.settings import StartupError
from lockstep.v1.internal_service_pb2 import ClusterCapacity, GangChanged, NodeCapacity, StartGang
from lockstep.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_CANCELLING,
    JOB_STATE_FAILED,
    JOB_STATE_PAUSED,
    JOB_STATE_PAUSING,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_STARTING,
)
from lockstep.v1.job_service_pb2 import CancelJobRequest, PauseJobRequest, UpdateJobRequest
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.support.server import Running, ScriptedLauncher, changed, loss_at, serving, status_of

PAIR = ["node-a", "node-a"]


async def start_job(server: Running, **changes: object) -> tuple[ScriptedLauncher, StartGang]:
    launcher = server.launcher()
    await launcher.be_ready()
    await server.submit(**({"resources": {"workers": 2}} | changes))
    return launcher, await launcher.next_start()


async def test_a_gang_outlives_its_launcher_and_the_next_one_takes_it_over(server: Running) -> None:
    first, gang = await start_job(server)
    await first.report(gang, 1)
    waiting = await server.submit()
    await first.leave()
    # Nobody looks after the workers, and they go on all the same.
    await first.report(gang, 2, step=2)
    second = server.launcher()
    await second.be_ready(gangs=[changed(gang, PAIR, message="taken over")])
    job = await server.until(gang.job_id, lambda job: job.running_workers == 2)
    assert (job.state, job.attempt, job.restarts, job.progress.step) == (JOB_STATE_RUNNING, 1, 0, 2)
    # What they hold is not given to others.
    assert (await server.get(waiting.job_id)).state == JOB_STATE_QUEUED
    await second.finish(gang, 3, step=3)
    assert (await second.next_start()).job_id == waiting.job_id
    assert "taken over" in await server.messages(gang.job_id)


async def test_a_gang_outlives_its_server_and_its_reports_are_taken_before_any_launcher_is_there(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, step=7, points=[loss_at(1, 0.5)], heals=1, notes=["healed"])
    async with serving(tmp_path) as server:
        launcher = server.launcher()
        # The answer to the first one was lost, and it comes again.
        again = await launcher.report(gang, 1, step=7, points=[loss_at(1, 0.5)], heals=1, notes=["healed"])
        assert again.acknowledged_sequence == 1
        await launcher.report(gang, 2, step=8, points=[loss_at(2, 0.4)])
        job = await server.get(gang.job_id)
        assert (job.state, job.progress.step, job.heals, job.running_workers) == (JOB_STATE_RUNNING, 8, 1, 0)
        await launcher.be_ready(gangs=[changed(gang, PAIR, revision=3)])
        job = await server.until(gang.job_id, lambda job: job.running_workers == 2)
        assert (job.attempt, job.restarts) == (1, 0)
        await server.jobs.UpdateJob(UpdateJobRequest(job_id=gang.job_id, workers=1))
        assert (await launcher.next_resize()).revision == 4
        await launcher.finish(gang, 3, step=9)
        listed = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
        assert [(point.step, point.value) for point in listed.points] == [(1, 0.5), (2, 0.4)]
        assert (await server.messages(gang.job_id)).count("healed") == 1


@pytest.mark.parametrize("who", ["server", "launcher"])
async def test_a_job_whose_workers_are_gone_starts_again_at_no_cost(tmp_path: Path, who: str) -> None:
    async def come_back(server: Running, gang: StartGang) -> None:
        launcher = server.launcher()
        await launcher.be_ready()
        again = await launcher.next_start()
        assert (again.job_id, again.attempt) == (gang.job_id, 2)
        job = await server.get(gang.job_id)
        assert (job.restarts, job.progress.step) == (0, 7)
        assert (await status_of(launcher.report(gang, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
        await launcher.finish(again, 1)
        words = f"the workers were gone when the {who} came back; the job starts from the beginning"
        assert [text for text in await server.messages(gang.job_id) if text.startswith(words)]

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, step=7)
        if who == "launcher":
            await launcher.leave()
            await come_back(server, gang)
    if who == "server":
        async with serving(tmp_path) as server:
            assert (await server.get(gang.job_id)).state == JOB_STATE_RUNNING
            await come_back(server, gang)


async def test_gangs_that_nobody_wants_are_sent_away_and_hold_their_place_until_they_are_gone(server: Running) -> None:
    launcher, gang = await start_job(server)
    await launcher.gang_stopped(gang, is_too_small=True)
    await server.reaches(gang.job_id, JOB_STATE_QUEUED)
    second = server.launcher()
    stranger = GangChanged(job_id="job-nobody", attempt=3, node_ids=["node-a"])
    await second.be_ready(gangs=[changed(gang, ["node-a"]), stranger])
    stops = [await second.next_stop() for _ in range(2)]
    assert [(stop.job_id, stop.attempt, stop.grace_s) for stop in stops] == [
        (gang.job_id, 1, 0.0),
        ("job-nobody", 3, 0.0),
    ]
    again = await second.next_start()
    assert (again.attempt, list(again.node_ids)) == (2, ["node-a"]), "the old attempt still holds the other CPU"
    await second.gang_stopped(gang)
    assert list((await second.next_resize()).node_ids) == PAIR


@pytest.mark.parametrize(
    ("request_type", "method", "state", "end", "keep"),
    [
        (CancelJobRequest, "CancelJob", JOB_STATE_CANCELLING, JOB_STATE_CANCELLED, False),
        (PauseJobRequest, "PauseJob", JOB_STATE_PAUSING, JOB_STATE_PAUSED, True),
    ],
)
async def test_an_order_to_stop_that_was_lost_is_given_again(
    tmp_path: Path, request_type: type, method: str, state: int, end: int, keep: bool
) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.leave()
        job = await getattr(server.jobs, method)(request_type(job_id=gang.job_id))
        assert job.state == state
    async with serving(tmp_path) as server:
        assert (await server.get(gang.job_id)).state == state
        launcher = server.launcher()
        await launcher.be_ready(gangs=[changed(gang, PAIR)])
        stop = await launcher.next_stop()
        assert (stop.job_id, stop.keep, stop.grace_s > 0) == (gang.job_id, keep, True)
        await launcher.gang_stopped(gang)
        assert (await server.reaches(gang.job_id, end)).restarts == 0


@pytest.mark.parametrize(
    ("request_type", "method", "end"),
    [(CancelJobRequest, "CancelJob", JOB_STATE_CANCELLED), (PauseJobRequest, "PauseJob", JOB_STATE_PAUSED)],
)
async def test_a_job_that_was_stopping_has_stopped_when_its_workers_are_gone(
    tmp_path: Path, request_type: type, method: str, end: int
) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await getattr(server.jobs, method)(request_type(job_id=gang.job_id))
    async with serving(tmp_path) as server:
        await server.launcher().be_ready()
        await server.reaches(gang.job_id, end)


async def test_a_gang_whose_end_could_not_be_stored_is_kept_until_the_next_launcher_tells_of_none(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, gang = await start_job(server)
    await first.report(gang, 1)

    async def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(server.parts.store.jobs, "save", refuse)
        await first.gang_stopped(gang, "WORKER_LOST")
        await status_of(first.call.read())
    assert (await server.get(gang.job_id)).state == JOB_STATE_RUNNING
    assert server.coordinator.counts() == {"entries": 1, "holding": 1}
    second = server.launcher()
    await second.be_ready()
    assert (await second.next_start()).attempt == 2


async def test_what_the_next_launcher_tells_of_a_gang_counts_as_if_it_were_told_later(server: Running) -> None:
    first, gang = await start_job(server)
    host = NodeCapacity(node_id="node-a", node_name="host-7", cpus=2, total_cpus=2)
    await first.say(capacity=ClusterCapacity(nodes=[host]))
    await first.report(gang, 1)
    await server.jobs.PauseJob(PauseJobRequest(job_id=gang.job_id))
    await first.next_stop()
    await first.leave()
    told = changed(gang, PAIR, message="the disk of node node-a is full")
    told.refuses_stop = True
    told.refused_node_ids.append("node-b")
    await server.launcher().be_ready(gangs=[told])
    job = await server.reaches(gang.job_id, JOB_STATE_RUNNING)
    assert job.state_reason == ("the pause has failed, and training goes on: the disk of node host-7 is full")
    ((_, taken_over),) = server.coordinator._live.holding.items()
    assert taken_over.refused == {"node-b"}


async def test_a_resize_that_was_lost_is_ordered_again(server: Running) -> None:
    first, gang = await start_job(server)
    await server.jobs.UpdateJob(UpdateJobRequest(job_id=gang.job_id, workers=1))
    assert (await first.next_resize()).revision == 1
    await first.leave()
    second = server.launcher()
    await second.be_ready(gangs=[changed(gang, PAIR)])
    resize = await second.next_resize()
    assert (resize.revision, list(resize.node_ids)) == (1, ["node-a"])


async def test_what_a_launcher_says_that_was_replaced_is_no_longer_heard(server: Running) -> None:
    first, gang = await start_job(server)
    await first.report(gang, 1)
    second = server.launcher()
    await second.be_ready(gangs=[changed(gang, PAIR)])
    assert (await status_of(first.call.read())).code() is grpc.StatusCode.UNAVAILABLE
    await server.until(gang.job_id, lambda job: job.running_workers == 2)
    assert (await server.get(gang.job_id)).state == JOB_STATE_RUNNING


async def test_tokens_differ_by_job_attempt_and_server_and_the_secret_is_the_owners_alone(tmp_path: Path) -> None:
    tokens = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        async with serving(folder) as server:
            launcher, gang = await start_job(server, resources={"workers": 1})
            await server.submit()
            tokens |= {gang.attempt_token, (await launcher.next_start()).attempt_token}
        assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert len(tokens) == 4


@pytest.mark.parametrize("content", ["", "abc", "00" * 31])
async def test_a_secret_that_is_damaged_is_named_at_the_start(tmp_path: Path, content: str) -> None:
    async with serving(tmp_path):
        pass
    (tmp_path / "secret").write_text(content)
    with pytest.raises(StartupError, match=r"secret cannot be used: .*; remove it"):
        async with serving(tmp_path):
            pass


async def test_a_shutdown_lets_every_gang_write_a_checkpoint(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher = server.launcher()
        await launcher.be_ready(cpus=3)
        gangs = []
        for _ in range(3):
            await server.submit()
            gangs.append(await launcher.next_start())
        running, cancelled, paused = gangs
        waiting = await server.submit()
        await server.jobs.CancelJob(CancelJobRequest(job_id=cancelled.job_id))
        await server.jobs.PauseJob(PauseJobRequest(job_id=paused.job_id))
        for _ in range(2):
            await launcher.next_stop()
        stopping = asyncio.ensure_future(server.application.stop())
        await launcher.next_drain()
        stops = {(stop := await launcher.next_stop()).job_id: stop for _ in gangs}
        assert {job_id: stop.keep for job_id, stop in stops.items()} == {
            running.job_id: True,
            cancelled.job_id: False,
            paused.job_id: True,
        }
        assert max(stop.grace_s for stop in stops.values()) == 20.0
        await launcher.report(running, 1, step=5)
        for gang in gangs:
            await launcher.gang_stopped(gang)
        await stopping
    async with serving(tmp_path) as server:
        job = await server.get(running.job_id)
        assert (job.state, job.restarts, job.progress.step) == (JOB_STATE_QUEUED, 0, 5)
        assert job.state_reason.startswith("the server was stopped; the job ")
        assert (await server.get(cancelled.job_id)).state == JOB_STATE_CANCELLED
        assert (await server.get(paused.job_id)).state == JOB_STATE_PAUSED
        assert (await server.get(waiting.job_id)).attempt == 0, "nothing starts in a server that is going down"


async def test_errors_of_jobs_are_told_during_a_shutdown_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server, resources={"workers": 1})
        await server.submit()
        other = await launcher.next_start()
        stopping = asyncio.ensure_future(server.application.stop())
        await launcher.next_drain()
        for _ in range(2):
            await launcher.next_stop()
        await launcher.gang_stopped(gang, "USER_ERROR", "It broke.")
        await launcher.gang_stopped(other, "WORKER_LOST", "It was killed after 20 seconds.")
        await stopping
    async with serving(tmp_path) as server:
        assert (await server.get(gang.job_id)).state == JOB_STATE_FAILED
        job = await server.get(other.job_id)
        assert (job.state, job.restarts) == (JOB_STATE_QUEUED, 0)


async def test_a_shutdown_waits_for_no_launcher_that_is_not_there_or_leaves(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        stopping = asyncio.ensure_future(server.application.stop())
        await launcher.next_drain()
        await launcher.next_stop()
        await launcher.leave()
        await stopping
    async with serving(tmp_path) as server:
        assert (await server.get(gang.job_id)).state == JOB_STATE_STARTING
        await server.application.stop()


async def test_a_shutdown_gives_up_a_launcher_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "SHUTDOWN_GRACE_S", 0.05)
    monkeypatch.setattr(dispatcher, "_SHUTDOWN_MARGIN_S", 0.05)

    async with serving(tmp_path) as server:
        await start_job(server)
        await server.application.stop()
