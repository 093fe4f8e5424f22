"""Jobs that start from the weights of others, which are kept for them as long as they need them."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest

from lockstep.server.checkpoints import init_from
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_FAILED
from lockstep.v1.job_service_pb2 import CancelJobRequest, ListJobsRequest, SubmitJobRequest
from tests.support.server import (
    Running,
    ScriptedLauncher,
    digits_spec,
    serving,
    start_job,
    status_of,
    violations_of,
    write_checkpoint,
)


def kept_in(folder: Path) -> list[Path]:
    """What is kept below a folder for jobs that start from others."""
    return list(folder.rglob("init-from"))


async def finished(server: Running, root: Path, **changes: object) -> tuple[ScriptedLauncher, StartGang]:
    launcher, gang = await start_job(server, **changes)
    written = [write_checkpoint(root, step) for step in (10, 20)]
    await launcher.finish(gang, 1, checkpoints=written)
    return launcher, gang


async def test_a_job_starts_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, source = await finished(server, tmp_path / "c")
        newest = await server.submit(init_from={"job_id": source.job_id})
        assert (newest.spec.init_from.job_id, newest.spec.init_from.step) == (source.job_id, 20)
        gang = await launcher.next_start()
        assert gang.init_from_uri == f"{tmp_path}/{newest.job_id}/init-from/step-{20:012}"
        assert gang.spec.init_from.step == 20
        older = await server.submit(init_from={"job_id": source.job_id, "step": 10})
        assert (await launcher.next_start()).init_from_uri == f"{tmp_path}/{older.job_id}/init-from/step-{10:012}"
        named = await server.submit(init_from={"job_id": source.job_id, "step": 20})
        assert newest.curve_digest == named.curve_digest != older.curve_digest
    async with serving(tmp_path) as server:
        launcher = server.launcher()
        await launcher.be_ready()
        uris = {(start := await launcher.next_start()).job_id: start.init_from_uri for _ in range(2)}
        assert uris[newest.job_id].endswith(f"{20:012}")
        assert uris[older.job_id].endswith(f"{10:012}")


async def test_the_weights_a_job_starts_from_outlive_their_removal_by_the_job_that_wrote_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, source = await start_job(server)
        await launcher.report(source, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
        await server.submit(init_from={"job_id": source.job_id})
        gang = await launcher.next_start()
        shutil.rmtree(tmp_path / "c" / f"step-{10:012}")
        await launcher.report(source, 2, checkpoints=[])
        assert (Path(gang.init_from_uri) / "model.safetensors").read_bytes() == b"model" * 100
        assert (Path(gang.init_from_uri) / "manifest.json").exists()
        await launcher.finish(gang, 1)
    assert not Path(gang.init_from_uri).parent.exists(), "nobody needs them any more"


async def test_weights_that_are_being_removed_are_refused_at_the_submit(server: Running, tmp_path: Path) -> None:
    launcher, source = await start_job(server)
    await launcher.report(source, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
    (tmp_path / "c" / f"step-{10:012}" / "manifest.json").unlink()
    error = await status_of(server.submit(init_from={"job_id": source.job_id}))
    assert set(violations_of(error)) == {"init_from.job_id"}


async def test_a_job_starts_from_a_folder(server: Running, tmp_path: Path) -> None:
    folder = Path(write_checkpoint(tmp_path / "run", 200).uri)
    _, gang = await start_job(server, init_from={"uri": f"file://{folder}"})
    assert gang.init_from_uri == f"file://{folder}"
    error = await status_of(server.submit(init_from={"uri": f"{tmp_path}/nowhere/step-000000000200"}))
    assert set(violations_of(error)) == {"init_from.uri"}


async def test_weights_that_are_not_there_are_named_before_anything_is_queued(server: Running, tmp_path: Path) -> None:
    launcher, source = await finished(server, tmp_path / "c", model={"softmax_regression": {}})
    empty = await server.submit()

    async def violation(**changes: Any) -> tuple[str, str]:
        call = server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(**changes), validate_only=True))
        [(field, message)] = violations_of(await status_of(call)).items()
        return field, message

    same: dict[str, Any] = {"model": {"softmax_regression": {}}}
    field, message = await violation(init_from={"job_id": "job-none"})
    assert (field, '"job-none", and there is no such job; give the whole id' in message) == (
        "init_from.job_id",
        True,
    )
    field, message = await violation(init_from={"job_id": empty.job_id})
    assert (field, "which has no checkpoint; wait" in message) == ("init_from.job_id", True)
    await launcher.gang_stopped(await launcher.next_start(), "NON_FINITE_LOSS")
    await server.reaches(empty.job_id, JOB_STATE_FAILED)
    field, message = await violation(init_from={"job_id": empty.job_id})
    hint = "it has ended as FAILED and will write none; name another job"
    assert (field, message.endswith(hint)) == ("init_from.job_id", True)
    field, message = await violation(init_from={"job_id": source.job_id, "step": 15}, **same)
    assert (field, "allowed: 20, 10;" in message) == ("init_from.step", True)
    field, message = await violation(init_from={"job_id": source.job_id})
    assert (field, "model is mlp, and the checkpoint" in message) == ("model", True)
    assert len((await server.jobs.ListJobs(ListJobsRequest())).jobs) == 2


async def test_weights_of_the_same_model_with_other_parameters_are_refused_by_the_parameter(
    server: Running, tmp_path: Path
) -> None:
    _, source = await finished(server, tmp_path / "c")
    model = {"mlp": {"hidden_units": [64, 32], "activation": "tanh"}}
    error = await status_of(server.submit(model=model, init_from={"job_id": source.job_id}))
    violations = violations_of(error)
    assert set(violations) == {"model.mlp.hidden_units", "model.mlp.activation"}
    assert "is [64, 32], and [256] in job" in violations["model.mlp.hidden_units"]
    assert 'is "tanh", and "relu" in job' in violations["model.mlp.activation"]


async def test_a_repeated_submit_is_answered_even_when_its_weights_have_gone_since(
    server: Running, tmp_path: Path
) -> None:
    launcher, source = await start_job(server)
    await launcher.report(source, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
    request = SubmitJobRequest(spec=digits_spec(init_from={"job_id": source.job_id}), request_id="key")
    first = await server.jobs.SubmitJob(request)
    await launcher.report(source, 2, checkpoints=[])
    assert (await server.jobs.SubmitJob(request)).job_id == first.job_id


async def test_a_submit_whose_caller_has_gone_keeps_weights_only_for_the_job_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_link, is_linking = threading.Event(), threading.Event()
    link = init_from.link_file

    def wait_and_link(source: int, target: int, name: str) -> None:
        is_linking.set()
        assert may_link.wait(20)
        link(source, target, name)

    monkeypatch.setattr(init_from, "link_file", wait_and_link)

    async with serving(tmp_path / "data") as server:
        launcher, source = await start_job(server)
        await launcher.report(source, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
        request = SubmitJobRequest(spec=digits_spec(init_from={"job_id": source.job_id}), request_id="key")
        for _ in range(3):
            is_linking.clear()
            call = server.jobs.SubmitJob(request)
            assert await asyncio.to_thread(is_linking.wait, 20)
            call.cancel()
            assert await call.code() is grpc.StatusCode.CANCELLED
        may_link.set()
        job = await server.jobs.SubmitJob(request)
        assert len((await server.jobs.ListJobs(ListJobsRequest())).jobs) == 2
    assert kept_in(tmp_path) == [tmp_path / job.job_id / "init-from"]


async def test_what_was_kept_for_a_job_that_ended_while_its_server_died_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "data") as server:
        launcher, source = await start_job(server, resources={"workers": 2})
        await launcher.report(source, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
        over, waiting = [await server.submit(init_from={"job_id": source.job_id}) for _ in range(2)]
        with monkeypatch.context() as dying:
            dying.setattr("lockstep.server.coordinator.live_jobs.forget_beside", AsyncMock())
            await server.jobs.CancelJob(CancelJobRequest(job_id=over.job_id))
            await launcher.leave()
            await server.application.stop()
    assert len(kept_in(tmp_path)) == 2
    async with serving(tmp_path / "data") as server:
        assert (await server.get(over.job_id)).state == JOB_STATE_CANCELLED
        assert kept_in(tmp_path) == [tmp_path / waiting.job_id / "init-from"]
    assert not (tmp_path / over.job_id).exists()


async def test_what_was_kept_for_a_job_that_was_never_stored_is_removed_by_the_next_server(tmp_path: Path) -> None:
    root = tmp_path / "data" / "checkpoints"
    async with serving(tmp_path / "data") as server:
        launcher, source = await start_job(server)
        written = write_checkpoint(root / source.job_id, 10)
        await launcher.report(source, 1, checkpoints=[written])
        job = await server.submit(init_from={"job_id": source.job_id})
    shutil.copytree(root / job.job_id, root / "job-lost")
    shutil.copytree(root / job.job_id, tmp_path / "elsewhere" / "job-of-another-server")
    async with serving(tmp_path / "data"):
        assert [path.parent.name for path in kept_in(root)] == [job.job_id]
        assert Path(written.uri).exists()
        assert kept_in(tmp_path / "elsewhere"), "it may be another server's"
