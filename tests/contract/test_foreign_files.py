"""What other users of the machine put where jobs keep their files: it is not sent, not removed, and holds up nobody."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lockstep.server import application
from lockstep.server.checkpoints import files, init_from
from lockstep.server.coordinator import parts
from lockstep.server.process import file_pool
from lockstep.v1.checkpoint_service_pb2 import Checkpoint, DownloadCheckpointRequest
from lockstep.v1.job_service_pb2 import CancelJobRequest, ListJobsRequest
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.support.server import Running, fetch, serving, start_job, status_of, violations_of, write_checkpoint

SECRET = b"s" * 500


def link_the_file(step: Path, secret: Path) -> None:
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").symlink_to(secret)


def link_the_step(step: Path, secret: Path) -> None:
    step.rename(step.with_name("moved"))
    step.symlink_to(secret.parent)


def link_the_job(step: Path, secret: Path) -> None:
    (secret.parent / step.name).symlink_to(secret.parent)
    step.parent.rename(step.parent.with_name("moved"))
    step.parent.symlink_to(secret.parent)


def move_the_secret_in(step: Path, secret: Path) -> None:
    secret.rename(step / "model.safetensors")


def link_it_hard(step: Path, secret: Path) -> None:
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").hardlink_to(secret)


def put_a_pipe(step: Path, secret: Path) -> None:
    (step / "model.safetensors").unlink()
    os.mkfifo(step / "model.safetensors")


def put_a_device(step: Path, secret: Path) -> None:
    (step / "model.safetensors").unlink()
    (step / "model.safetensors").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (link_the_file, grpc.StatusCode.FAILED_PRECONDITION),
        (link_the_step, grpc.StatusCode.FAILED_PRECONDITION),
        (link_the_job, grpc.StatusCode.FAILED_PRECONDITION),
        (put_a_pipe, grpc.StatusCode.FAILED_PRECONDITION),
        (put_a_device, grpc.StatusCode.FAILED_PRECONDITION),
        (move_the_secret_in, grpc.StatusCode.DATA_LOSS),
        (link_it_hard, grpc.StatusCode.DATA_LOSS),
    ],
)
async def test_nothing_is_sent_of_what_was_put_in_the_place_of_a_file(
    tmp_path: Path, attack: Callable[[Path, Path], None], code: grpc.StatusCode
) -> None:
    async with serving(tmp_path / "data") as server:
        launcher, gang = await start_job(server)
        written = write_checkpoint(tmp_path / "c" / "job", 10)
        await launcher.report(gang, 1, checkpoints=[written])
        (tmp_path / "private").mkdir(mode=0o700)
        secret = tmp_path / "private" / "model.safetensors"
        secret.write_bytes(SECRET)
        attack(Path(written.uri), secret)
        assert await refused(server, gang.job_id, "model.safetensors") == (b"", code)


async def test_no_manifest_is_sent_but_that_which_the_worker_has_told(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        launcher, gang = await start_job(server)
        written = write_checkpoint(tmp_path / "c", 10)
        await launcher.report(gang, 1, checkpoints=[written])
        manifest = Path(written.uri) / "manifest.json"
        for wrong in (b"root:x:0:0", b"", manifest.read_bytes().replace(b"2", b"3")):
            manifest.write_bytes(wrong)
            assert await refused(server, gang.job_id, "manifest.json") == (b"", grpc.StatusCode.DATA_LOSS)


async def refused(server: Running, job_id: str, name: str) -> tuple[bytes, grpc.StatusCode]:
    """Fetch a file that must not come: what came of it, and the status at the end."""
    call = server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=job_id, file_name=name))
    sent = b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in call:
            sent += response.chunk
    return sent, caught.value.code()


async def test_a_server_that_has_stopped_leaves_no_threads(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        await with_checkpoint(server, tmp_path / "c")
        job_id = (await server.jobs.ListJobs(ListJobsRequest())).jobs[0].job_id
        call = server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=job_id))
        assert [response async for response in call]
    for thread in threading.enumerate():
        if thread.name == "lockstep-files":
            thread.join(timeout=20)
            assert not thread.is_alive()


async def answers(server: Running, job_id: str) -> None:
    """Everything that has to do with no file of a user."""
    await server.jobs.ListJobs(ListJobsRequest())
    await server.metrics.ListMetrics(ListMetricsRequest(job_id=job_id))
    job = await server.submit()
    await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    assert await fetch(server.application.http_address, "/healthz") == (200, "ok\n")
    assert await health_of(server) == health_pb2.HealthCheckResponse.SERVING


async def health_of(server: Running, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    response: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return response.status


def test_reads_that_hang_hold_up_nobody_and_not_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    def hang(step: Path, name: str) -> Any:
        is_over.wait()
        raise FileNotFoundError(name)

    monkeypatch.setattr(files, "_open_local", hang)
    monkeypatch.setattr(application, "_CALLS_GRACE_S", 0.5)

    async def scenario() -> None:
        async with serving(tmp_path / "data") as server:
            launcher, gang = await start_job(server)
            await launcher.report(gang, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
            request = DownloadCheckpointRequest(job_id=gang.job_id)
            calls = [server.checkpoints.DownloadCheckpoint(request) for _ in range(2 * file_pool.MOST_THREADS)]
            reading = [asyncio.ensure_future(status_of(call.read())) for call in calls]
            await answers(server, gang.job_id)
            for call in calls[: file_pool.MOST_THREADS]:
                call.cancel()
            await answers(server, gang.job_id)
            await launcher.leave()
            await server.application.stop()
            errors = await asyncio.gather(*reading[file_pool.MOST_THREADS :])
            # Whichever comes first: that the pool is closed, or that the grace of the calls is over.
            assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}

    try:
        asyncio.run(scenario())
    finally:
        is_over.set()


def test_a_read_that_hangs_is_told_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(parts, "FilePool", lambda: file_pool.FilePool(4, deadline_s=0.1))
    monkeypatch.setattr(files, "_open_local", lambda step, name: is_over.wait())

    async def scenario() -> None:
        async with serving(tmp_path / "data") as server:
            launcher, gang = await start_job(server)
            await launcher.report(gang, 1, checkpoints=[write_checkpoint(tmp_path / "c", 10)])
            request = DownloadCheckpointRequest(job_id=gang.job_id)
            status = await status_of(server.checkpoints.DownloadCheckpoint(request).read())
            assert status.code() is grpc.StatusCode.UNAVAILABLE
            words = f"reading model.safetensors of checkpoint 10 of {gang.job_id} has not come to an end after 0.1 s"
            assert words in status.details()

    try:
        asyncio.run(scenario())
    finally:
        is_over.set()


async def test_health_is_that_of_the_store(server: Running) -> None:
    may_go_on, store = threading.Event(), server.parts.store
    assert server.application._health is not None
    server.application._health.deadline_s = 0.1
    writing = asyncio.ensure_future(store.database.write(lambda connection: may_go_on.wait()))
    service = "lockstep.v1.JobService"
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert await fetch(server.application.http_address, "/healthz") == (
        503,
        "the store has not answered for 0.1 s\n",
    )
    assert await health_of(server) == await health_of(server, service)
    assert await health_of(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    server.application._health.deadline_s = 20.0
    may_go_on.set()
    await writing
    assert await fetch(server.application.http_address, "/healthz") == (200, "ok\n")
    assert await health_of(server, service) == health_pb2.HealthCheckResponse.SERVING
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def with_checkpoint(server: Running, root: Path) -> tuple[str, Checkpoint]:
    launcher, gang = await start_job(server)
    written = write_checkpoint(root / gang.job_id, 10)
    await launcher.finish(gang, 1, checkpoints=[written])
    return gang.job_id, written


async def test_only_the_files_of_a_checkpoint_are_kept_for_a_job_that_starts_from_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        source, written = await with_checkpoint(server, tmp_path / "c")
        step = Path(written.uri)
        (step / "more").symlink_to("/etc/passwd")
        (step / "all").symlink_to("/etc")
        job = await server.submit(init_from={"job_id": source})
        [kept] = (tmp_path / "c" / job.job_id / "init-from").iterdir()
        assert {path.name for path in kept.iterdir()} == {file.name for file in written.files}


@pytest.mark.parametrize("attack", [link_the_file, link_the_step, link_the_job, put_a_pipe])
async def test_nothing_is_kept_of_what_was_put_in_the_place_of_a_file(
    tmp_path: Path, attack: Callable[[Path, Path], None]
) -> None:
    async with serving(tmp_path / "data") as server:
        source, written = await with_checkpoint(server, tmp_path / "c")
        (tmp_path / "private").mkdir(mode=0o700)
        secret = tmp_path / "private" / "model.safetensors"
        for file in written.files:
            (secret.parent / file.name).write_bytes(SECRET)
        attack(Path(written.uri), secret)
        error = await status_of(server.submit(init_from={"job_id": source}))
        assert set(violations_of(error)) == {"init_from.job_id"}
        left = [path for path in (tmp_path / "c").rglob("*") if path.is_file() and not path.is_symlink()]
        assert all(path.read_bytes() != SECRET for path in left)
        assert not list((tmp_path / "c").glob("*/init-from"))


async def test_a_copy_where_there_are_no_links_is_nobody_elses_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    async with serving(tmp_path / "data") as server:
        source, written = await with_checkpoint(server, tmp_path / "c")
        monkeypatch.setattr(os, "link", no_links)
        job = await server.submit(init_from={"job_id": source})
        kept = tmp_path / "c" / job.job_id / "init-from" / Path(written.uri).name
        for file in written.files:
            assert (kept / file.name).read_bytes() == (Path(written.uri) / file.name).read_bytes()
            assert (kept / file.name).stat().st_mode & 0o777 == 0o600


def test_what_a_link_leads_to_is_not_removed_with_the_weights_that_were_kept(tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "init-from" / "step"
    victim.mkdir(parents=True)
    (victim / "precious").write_text("")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "job-1").symlink_to(tmp_path / "victim")
    init_from.forget_first_weights("job-1", f"{tmp_path}/c/job-1/init-from/step")
    (tmp_path / "c" / "job-1").unlink()
    (tmp_path / "c" / "job-1").mkdir()
    (tmp_path / "c" / "job-1" / "init-from").symlink_to(victim.parent)
    init_from.forget_first_weights("job-1", f"{tmp_path}/c/job-1/init-from/step")
    assert (victim / "precious").exists()
