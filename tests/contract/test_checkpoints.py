from __future__ import annotations

import asyncio
import hashlib
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import grpc
import pytest

from lockstep.server.checkpoints import files
from lockstep.server.checkpoints.files import CheckpointFileReader
from lockstep.v1.checkpoint_service_pb2 import (
    Checkpoint,
    DownloadCheckpointRequest,
    DownloadHeader,
    ListCheckpointsRequest,
)
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_RUNNING
from tests.support.server import (
    Running,
    ScriptedLauncher,
    loss_at,
    serving,
    start_job,
    status_of,
    violations_of,
    write_checkpoint,
)

MIB = 1024 * 1024


async def steps_of(server: Running, job_id: str, size: int = 0) -> list[list[int]]:
    """Read all pages of a job's checkpoints, as steps."""
    token = ""
    pages: list[Any] = []
    while not pages or token:
        request = ListCheckpointsRequest(job_id=job_id, page_size=size, page_token=token)
        page = await server.checkpoints.ListCheckpoints(request)
        pages.append([checkpoint.step for checkpoint in page.checkpoints])
        token = page.next_page_token
    return pages


async def download(server: Running, job_id: str, **which: Any) -> tuple[DownloadHeader, list[bytes]]:
    """Fetch a file: what it is said to be, and its chunks."""
    call = server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=job_id, **which))
    first, *rest = [response async for response in call]
    assert all(response.WhichOneof("part") == "chunk" for response in rest)
    return first.header, [response.chunk for response in rest]


async def test_checkpoints_are_listed_newest_first_page_by_page_until_they_are_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        assert await steps_of(server, gang.job_id) == [[]]
        written = [write_checkpoint(tmp_path / "c", step) for step in (100, 200, 300)]
        written[0].create_time.FromDatetime(datetime(2030, 1, 2, tzinfo=UTC))
        await launcher.report(gang, 1, checkpoints=written[:2], points=[loss_at(1, 0.5)])
        for _ in range(2):
            await launcher.report(gang, 2, checkpoints=written)
        assert await steps_of(server, gang.job_id, size=2) == [[300, 200], [100]]
        response = await server.checkpoints.ListCheckpoints(ListCheckpointsRequest(job_id=gang.job_id))
        oldest = response.checkpoints[-1]
        assert (oldest.job_id, oldest.HasField("create_time")) == (gang.job_id, True)
        oldest.job_id = ""
        assert oldest == written[0]
        await launcher.report(gang, 3, checkpoints=written[1:])
        assert await steps_of(server, gang.job_id) == [[300, 200]]
    async with serving(tmp_path) as server:
        assert await steps_of(server, gang.job_id) == [[300, 200]]


async def test_bad_pages_of_checkpoints_are_refused_by_the_fields_name(server: Running) -> None:
    job_id = (await server.submit()).job_id
    for field, wrong in {"page_size": {"page_size": 1001}, "page_token": {"page_token": "x"}}.items():
        request = ListCheckpointsRequest(job_id=job_id, **wrong)  # type: ignore[arg-type]
        assert set(violations_of(await status_of(server.checkpoints.ListCheckpoints(request)))) == {field}
    download = DownloadCheckpointRequest(job_id=job_id, step=-1)
    assert set(violations_of(await status_of(server.checkpoints.DownloadCheckpoint(download).read()))) == {"step"}


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
async def test_a_file_comes_whole_with_its_digest_first(tmp_path: Path, size: int) -> None:
    data = hashlib.shake_128(b"x").digest(size)
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        written = [
            write_checkpoint(tmp_path / "c", 100),
            write_checkpoint(tmp_path / "c", 200, {"model.safetensors": data, "extra": b"e"}),
        ]
        await launcher.report(gang, 1, checkpoints=written)
        header, chunks = await download(server, gang.job_id)
        assert (header.checkpoint.step, header.file) == (200, written[1].files[0])
        assert b"".join(chunks) == data
        assert all(0 < len(chunk) <= MIB for chunk in chunks)
        header, chunks = await download(server, gang.job_id, file_name="extra")
        assert (header.file.name, chunks) == ("extra", [b"e"])
        header, chunks = await download(server, gang.job_id, step=100)
        assert (header.checkpoint.step, chunks) == (100, [b"model" * 100])


async def test_a_manifest_from_before_its_digest_was_told_is_sent_when_it_says_what_was_told(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    written = write_checkpoint(tmp_path / "c", 1)
    manifest = Path(written.uri) / "manifest.json"
    right, told = manifest.read_bytes(), written.files.pop()
    await launcher.report(gang, 1, checkpoints=[written])
    header, chunks = await download(server, gang.job_id, file_name="manifest.json")
    assert (header.file, chunks) == (told, [right])
    for wrong in (b"", b"{}", b"[]", b"root:x:0:0", right.replace(b'"step": 1', b'"step": 2')):
        manifest.write_bytes(wrong)
        request = DownloadCheckpointRequest(job_id=gang.job_id, file_name="manifest.json")
        status = await status_of(server.checkpoints.DownloadCheckpoint(request).read())
        assert status.code() is grpc.StatusCode.DATA_LOSS
        assert "does not say what was written" in status.details()


async def test_a_checkpoint_is_read_from_wherever_fsspec_can_reach(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/lockstep/step-1/model.safetensors", b"far away")
    digest = hashlib.sha256(b"far away").hexdigest()
    far = Checkpoint(step=1, uri="memory://lockstep/step-1")
    far.files.add(name="model.safetensors", size_bytes=8, sha256=digest)
    try:
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            await launcher.report(gang, 1, checkpoints=[far])
            assert (await download(server, gang.job_id))[1] == [b"far away"]
    finally:
        files.rm("/lockstep", recursive=True)


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "empty"])
@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_file_that_is_not_what_was_written_ends_as_data_loss(tmp_path: Path, damage: str, size: int) -> None:
    data = b"a" * size
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        written = write_checkpoint(tmp_path / "c", 1, {"model.safetensors": data})
        path = Path(written.uri) / "model.safetensors"
        bad = {"flipped": b"b" + data[1:], "shorter": data[:-1], "longer": data + b"a", "empty": b""}[damage]
        path.write_bytes(bad)
        await launcher.report(gang, 1, checkpoints=[written])
        call = server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=gang.job_id))
        sent = b""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                sent += response.chunk
        assert (sent, caught.value.code()) == (b"", grpc.StatusCode.DATA_LOSS)
        assert f"model.safetensors of checkpoint 1 of {gang.job_id} " in str(caught.value.details())


async def test_a_large_file_gives_signs_of_life_while_it_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHECK_BYTES", MIB)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        data = bytes(range(256)) * (3 * MIB // 256)
        await launcher.report(gang, 1, checkpoints=[write_checkpoint(tmp_path, 1, {"model.safetensors": data})])
        _, chunks = await download(server, gang.job_id)
        assert [len(chunk) for chunk in chunks] == [0, 0, 0, MIB, MIB, MIB]
        assert b"".join(chunks) == data


async def test_what_is_not_there_is_not_found_in_words(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    async def error(**which: Any) -> str:
        request = DownloadCheckpointRequest(job_id=gang.job_id, **which)
        status = await status_of(server.checkpoints.DownloadCheckpoint(request).read())
        assert status.code() is grpc.StatusCode.NOT_FOUND
        return status.details()

    assert f"{gang.job_id} has no checkpoint yet" in await error()
    written = write_checkpoint(tmp_path / "c", 5)
    await launcher.report(gang, 1, checkpoints=[written])
    assert "has no checkpoint of step 6" in await error(step=6)
    allowed = "allowed: manifest.json, model.safetensors, training.safetensors"
    for name in ("other", "../step-000000000005/model.safetensors", "/etc/passwd", "..", "\0"):
        assert allowed in await error(file_name=name)
    (Path(written.uri) / "model.safetensors").unlink()
    assert f"is not at {written.uri} any more" in await error()
    for path in Path(written.uri).iterdir():
        path.unlink()
    Path(written.uri).rmdir()
    assert f"is not at {written.uri} any more" in await error(file_name="manifest.json")


async def test_a_place_that_cannot_be_reached_is_told_and_is_no_fault_of_the_server(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    written = write_checkpoint(tmp_path / "c", 5)
    (Path(written.uri) / "model.safetensors").unlink()
    (Path(written.uri) / "model.safetensors").mkdir()
    await launcher.report(gang, 1, checkpoints=[written])
    request = DownloadCheckpointRequest(job_id=gang.job_id)
    status = await status_of(server.checkpoints.DownloadCheckpoint(request).read())
    assert status.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "the server cannot read model.safetensors of checkpoint 5" in status.details()
    assert "is no regular file" in status.details()


async def test_files_are_closed_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close, is_closed, closed_by = CheckpointFileReader.close, threading.Event(), []

    def close_slowly(reader: CheckpointFileReader) -> None:
        closed_by.append(threading.current_thread())
        close(reader)
        is_closed.set()

    monkeypatch.setattr(CheckpointFileReader, "close", close_slowly)

    async with serving(tmp_path / "server") as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, checkpoints=[write_checkpoint(tmp_path / "c", 1)])
        await download(server, gang.job_id)
        assert await asyncio.to_thread(is_closed.wait, 20)
    assert threading.main_thread() not in closed_by


async def test_a_client_that_leaves_in_the_middle_of_a_file_leaves_nothing_open(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    written = write_checkpoint(tmp_path / "c", 1, {"model.safetensors": bytes(32 * MIB)})
    await launcher.report(gang, 1, checkpoints=[written])
    call = server.checkpoints.DownloadCheckpoint(DownloadCheckpointRequest(job_id=gang.job_id))
    await call.read()
    call.cancel()
    path = Path(written.uri) / "model.safetensors"
    while any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir()):
        await server.get(gang.job_id)


async def test_a_failed_job_names_its_last_good_checkpoint_and_a_restarted_one_where_it_goes_on(
    server: Running, launcher: ScriptedLauncher, gang: StartGang, tmp_path: Path
) -> None:
    written = [write_checkpoint(tmp_path / "c", step) for step in (10, 20)]
    await launcher.report(gang, 1, step=25, checkpoints=written)
    await launcher.report(gang, 2, step=26, checkpoints=written[:1])
    await launcher.gang_stopped(gang, "WORKER_LOST", "Both were killed.")
    again = await launcher.next_start()
    await launcher.report(again, 1, step=11)
    assert (await server.get(gang.job_id)).state == JOB_STATE_RUNNING
    await launcher.gang_stopped(again, "NON_FINITE_LOSS", "The loss is NaN at step 12.")
    job = await server.reaches(gang.job_id, JOB_STATE_FAILED)
    assert job.error.message == "The loss is NaN at step 12. The last good checkpoint is of step 10."
    told = await server.messages(gang.job_id)
    assert [text for text in told if "goes on from its newest checkpoint, of step 10: Both were killed." in text]
