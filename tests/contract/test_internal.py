from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.v1.checkpoint_service_pb2 import Checkpoint, CheckpointFile
from lockstep.v1.internal_service_pb2 import LauncherReady, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import (
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
)
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.support.server import Running, ScriptedLauncher, fetch, loss_at, serving, start_job, status_of

LATE = Timestamp(seconds=10**15)


def with_file(**changes: object) -> Checkpoint:
    """Make a checkpoint whose only file is right but for the changes."""
    given: dict[str, object] = {"name": "model.safetensors", "size_bytes": 1, "sha256": "a" * 64}
    return Checkpoint(step=1, uri="/c", files=[CheckpointFile(**(given | changes))])  # type: ignore[arg-type]


async def test_a_launcher_without_the_token_is_refused(server: Running) -> None:
    for token in ("wrong", ""):
        call = InternalServiceStub(server.channel).ConnectLauncher(metadata=(("lockstep-launcher-token", token),))
        assert (await status_of(call.read())).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_launcher_of_another_epoch_is_refused(server: Running) -> None:
    launcher = server.launcher()
    await launcher.say(ready=LauncherReady(epoch=99))
    assert (await status_of(launcher.call.read())).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_report_is_taken_once(server: Running, launcher: ScriptedLauncher, gang: StartGang) -> None:
    for _ in range(2):
        response = await launcher.report(gang, 1, step=1, points=[loss_at(1, 0.5)])
        assert response.acknowledged_sequence == 1
    await launcher.report(gang, 2, step=2)
    assert (await launcher.report(gang, 1, step=1)).acknowledged_sequence == 2
    assert (await server.get(gang.job_id)).progress.step == 2
    listed = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
    assert len(listed.points) == 1


async def test_the_last_report_is_acknowledged_again_when_the_first_answer_was_lost(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    for _ in range(2):
        assert (await launcher.report(gang, 1, digest="abc")).acknowledged_sequence == 1
    for ended in (False, True):
        if ended:
            await launcher.gang_stopped(gang)
            await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)
            assert (await launcher.report(gang, 1, digest="abc")).acknowledged_sequence == 1
        changes: list[dict[str, Any]] = [{"sequence": 2}, {"sequence": 1, "generation": 2}]
        for again in changes:
            error = await status_of(launcher.report(gang, **again, digest="other"))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await server.get(gang.job_id)).result.weights_digest == "abc"


async def test_reports_of_others_are_refused(server: Running, launcher: ScriptedLauncher, gang: StartGang) -> None:
    for changes in ({"token": "wrong"}, {"token": ""}, {"attempt": 2}, {"job_id": "job-other"}):
        error = await status_of(launcher.report(gang, 1, **changes))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await server.get(gang.job_id)).progress.step == 0


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
        ("generation", {"generation": -1}),
        ("heals", {"heals": -1}),
        ("kept_checkpoints.checkpoints[0].step", {"checkpoints": [Checkpoint(step=-1, uri="/c")]}),
        ("kept_checkpoints.checkpoints[0].uri", {"checkpoints": [Checkpoint(step=1)]}),
        ("kept_checkpoints.checkpoints[0].uri", {"checkpoints": [Checkpoint(step=1, uri="/c\n")]}),
        (
            "kept_checkpoints.checkpoints[0].weights_digest",
            {"checkpoints": [Checkpoint(step=1, uri="/c", weights_digest="xyz")]},
        ),
        (
            "kept_checkpoints.checkpoints[0].create_time",
            {"checkpoints": [Checkpoint(step=1, uri="/c", create_time=LATE)]},
        ),
        ("kept_checkpoints.checkpoints[0].files[0].name", {"checkpoints": [with_file(name="../x")]}),
        ("kept_checkpoints.checkpoints[0].files[0].name", {"checkpoints": [with_file(name="..")]}),
        ("kept_checkpoints.checkpoints[0].files[0].name", {"checkpoints": [with_file(name="")]}),
        ("kept_checkpoints.checkpoints[0].files[0].size_bytes", {"checkpoints": [with_file(size_bytes=-1)]}),
        ("kept_checkpoints.checkpoints[0].files[0].sha256", {"checkpoints": [with_file(sha256="A" * 64)]}),
        ("kept_checkpoints.checkpoints", {"checkpoints": [Checkpoint(step=1, uri="/c")] * 10_001}),
    ],
)
async def test_a_malformed_report_is_refused_and_changes_nothing(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, field: str, changes: dict[str, object]
) -> None:
    given = {"sequence": 1} | changes
    error = await status_of(launcher.report(gang, **given))  # type: ignore[arg-type]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(field)
    assert (await launcher.report(gang, 1)).acknowledged_sequence == 1


async def test_each_generation_counts_its_reports_anew_and_fences_those_before(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    for sequence in (1, 2):
        await launcher.report(gang, sequence, step=sequence)
    assert (await launcher.report(gang, 1, generation=3, step=2)).acknowledged_sequence == 1
    for sequence in (2, 3):
        error = await status_of(launcher.report(gang, sequence, generation=2, step=9))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "generation 2" in error.details()
    error = await status_of(launcher.report(gang, 3, generation=3))
    assert error.details() == "sequence is 3; the next report is 2"
    error = await status_of(launcher.report(gang, 2, generation=4))
    assert error.details() == "sequence is 2; the next report is 1"
    assert (await server.get(gang.job_id)).progress.step == 2


async def test_heals_and_notes_of_a_report_are_taken_once(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1)
    for _ in range(2):
        await launcher.report(gang, 2, heals=2, notes=["rank 1 was lost", "", "x" * 3000])
    assert (await server.get(gang.job_id)).heals == 2
    await launcher.finish(gang, 3)
    told = await server.messages(gang.job_id)
    assert told == [*told[:3], "rank 1 was lost", "x" * 1997 + "...", "all steps are done"]
    heals = f'lockstep_job_heals_total{{job_id="{gang.job_id}"}} 2.0'
    assert heals in (await fetch(server.application.http_address, "/metrics"))[1]


async def test_an_order_to_start_says_where_checkpoints_go(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    assert gang.checkpoint_uri == f"{tmp_path}/checkpoints/{gang.job_id}"
    assert gang.init_from_uri == ""
    await server.submit(recovery={"checkpoint_uri": "file:///data/runs/"})
    elsewhere = await launcher.next_start()
    assert elsewhere.checkpoint_uri == f"file:///data/runs/{elsewhere.job_id}"


async def test_a_relative_data_folder_gives_an_absolute_folder_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with serving(Path("data")) as server:
        _, gang = await start_job(server)
        assert gang.checkpoint_uri == f"{tmp_path}/data/checkpoints/{gang.job_id}"


async def test_lost_workers_are_followed_by_the_next_attempt_which_fences_the_last(server: Running) -> None:
    launcher, first = await start_job(server)
    await launcher.report(first, 1, step=5, points=[loss_at(1, 0.5)])
    await launcher.gang_stopped(first, "WORKER_LOST", "Rank 1 was killed.")
    second = await launcher.next_start()
    assert (second.attempt, second.attempt_token != first.attempt_token) == (2, True)
    assert (await status_of(launcher.report(first, 2))).code() is grpc.StatusCode.PERMISSION_DENIED
    job = await server.get(first.job_id)
    assert (job.restarts, job.progress.step) == (1, 5)
    # The curve comes again and is the same; a value that differs is told.
    await launcher.report(second, 1, points=[loss_at(1, 0.5), loss_at(2, 0.4)])
    await launcher.finish(second, 2, points=[loss_at(2, 0.4)])
    assert not [text for text in await server.messages(first.job_id) if "DIFFERS" in text]


async def test_a_curve_that_differs_in_the_next_attempt_is_an_event(server: Running) -> None:
    launcher, first = await start_job(server)
    await launcher.report(first, 1, points=[loss_at(1, 0.5)])
    await launcher.gang_stopped(first, "WORKER_LOST")
    second = await launcher.next_start()
    await launcher.finish(second, 1, points=[loss_at(1, 0.6)])
    assert len([text for text in await server.messages(first.job_id) if "THE CURVE DIFFERS" in text]) == 1


async def test_workers_lost_too_often_fail_the_job(server: Running) -> None:
    launcher, gang = await start_job(server, recovery={"max_restarts": 1})
    await launcher.gang_stopped(gang, "WORKER_LOST")
    await launcher.gang_stopped(await launcher.next_start(), "WORKER_LOST", "Rank 0 was killed.")
    job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
    assert (job.error.reason, job.restarts) == ("WORKER_LOST", 1)
    assert job.error.message == "Rank 0 was killed. The job may not start again: recovery.max_restarts is 1."


async def test_an_error_of_the_users_reaches_the_job_as_it_is(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.gang_stopped(gang, "DATA_INVALID", "The file is truncated.")
    job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
    assert (job.error.reason, job.error.message) == ("DATA_INVALID", "The file is truncated.")
    assert server.coordinator.counts() == {"entries": 0, "holding": 0}


async def test_resources_are_free_only_when_the_gang_is_gone(server: Running) -> None:
    launcher, gang = await start_job(server, resources={"workers": 2})
    waiting = await server.submit()
    await launcher.report(gang, 1, digest="abc")
    assert (await server.get(gang.job_id)).state == JOB_STATE_RUNNING
    assert (await server.get(waiting.job_id)).state == JOB_STATE_QUEUED
    await launcher.gang_stopped(gang)
    assert (await launcher.next_start()).job_id == waiting.job_id


async def test_a_launcher_that_hangs_up_in_the_middle_of_its_goodbye_is_gone(server: Running) -> None:
    dispatcher = server.parts.dispatcher
    for _ in range(20):
        launcher = server.launcher()
        await launcher.be_ready()
        await dispatcher.cluster_is_ready.wait()
        await launcher.leave()
        launcher.call.cancel()
        for _ in range(5_000):  # nothing tells it
            if not dispatcher.cluster_is_ready.is_set():
                break
            await asyncio.sleep(0.001)
        assert not dispatcher.cluster_is_ready.is_set()
