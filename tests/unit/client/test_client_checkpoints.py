"""Checkpoints are found, fetched whole or not at all, and loaded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.client import (
    CheckpointFile,
    Client,
    DataLoss,
    DeadlineExceeded,
    LockstepError,
    MissingPackage,
    NotFound,
    Unavailable,
    checkpoints,
)
from lockstep.client.job import Job
from lockstep.v1.checkpoint_service_pb2 import DownloadCheckpointRequest
from tests.support.scripted_server import (
    FILES,
    MANIFEST,
    UNAVAILABLE,
    Refusal,
    ScriptedServer,
    a_checkpoint,
    a_download,
    a_file,
    a_job,
)
from tests.support.scripted_server import checkpoints as a_page
from tests.support.specs import DIGITS

WHOLE = {**FILES, "manifest.json": MANIFEST}


@pytest.fixture
def job(server: ScriptedServer, client: Client) -> Job:
    server.on("GetJob", a_job("RUNNING"))
    return client.get_job("j-1")


def serve(server: ScriptedServer, **change: Callable[[list[Any]], list[Any]]) -> None:
    """Serve the files of a checkpoint; `change` makes something else of the messages of those it names."""

    def answer(request: DownloadCheckpointRequest) -> list[Any]:
        name = request.file_name
        return change.get(name.partition(".")[0], list)(a_download(name))

    server.on("DownloadCheckpoint", answer)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_pages_of_checkpoints_are_read_as_typed_values(server: ScriptedServer, job: Job) -> None:
    newest = a_checkpoint(400)
    newest.create_time.FromDatetime(datetime(2024, 5, 17, 12, 0, tzinfo=UTC))
    server.on("ListCheckpoints", a_page(newest, a_checkpoint(300), token="more"), a_page(a_checkpoint(200)))
    listed = list(job.checkpoints())
    assert [checkpoint.step for checkpoint in listed] == [400, 300, 200]
    assert [request.page_token for request in server.requests["ListCheckpoints"]] == ["", "more"]
    first = listed[0]
    assert (first.job_id, first.uri) == ("j-1", "/data/j-1/step-000000000400")
    assert (first.create_time, first.weights_digest) == (datetime(2024, 5, 17, 12, 0, tzinfo=UTC), "ab" * 32)
    digest = a_file("model.safetensors", FILES["model.safetensors"]).sha256
    assert first.files[0] == CheckpointFile("model.safetensors", 3500, digest)
    assert first.size_bytes == 3500 + 2400


def test_a_download_has_every_file_and_its_manifest(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    serve(server)
    path = job.download(tmp_path / "new" / "folder", step=200)
    assert path == tmp_path / "new" / "folder" / "step-000000000200"
    assert contents(path) == WHOLE
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000000000200"]
    assert [request.file_name for request in server.requests["DownloadCheckpoint"]] == list(WHOLE)


def test_a_manifest_that_is_listed_among_the_files_is_fetched_once(
    server: ScriptedServer, job: Job, tmp_path: Path
) -> None:
    whole = a_checkpoint(files=[a_file(name, content) for name, content in WHOLE.items()])
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name, checkpoint=whole))
    assert contents(job.download(tmp_path)) == WHOLE
    assert len(server.requests["DownloadCheckpoint"]) == 3


def test_a_newer_checkpoint_does_not_get_between_two_files(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    serve(server)
    job.download(tmp_path)
    asked = [r.step if r.HasField("step") else None for r in server.requests["DownloadCheckpoint"]]
    assert asked == [None, 200, 200]


def test_step_0_is_a_step(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name, checkpoint=a_checkpoint(0)))
    assert job.download(tmp_path, step=0).name == "step-000000000000"
    assert server.requests["DownloadCheckpoint"][0].HasField("step")


def flip(messages: list[Any]) -> list[Any]:
    messages[-1].chunk = bytes([messages[-1].chunk[0] ^ 1]) + messages[-1].chunk[1:]
    return messages


WRONG = [
    ("model", flip, r"^model\.safetensors came with other bytes than it has"),
    ("training", flip, r"^training\.safetensors came with other bytes than it has"),
    ("manifest", flip, r"^manifest\.json came with other bytes than it has"),
    ("training", lambda messages: messages[:-1], r"^training\.safetensors came with 2000 bytes; it has 2400$"),
    ("training", lambda messages: [*messages, messages[1]], "came with more bytes than the 2400 that it has"),
    ("training", lambda messages: messages[1:], "did not say what it sends as training.safetensors"),
    ("training", lambda messages: [], "did not say what it sends as training.safetensors"),
    ("training", lambda messages: a_download("model.safetensors"), "did not say what it sends as training"),
    (
        "training",
        lambda messages: [messages[0], Refusal(grpc.StatusCode.DATA_LOSS, "the file has changed")],
        r"^the file has changed$",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), WRONG)
def test_wrong_bytes_are_an_error_and_nothing_stays(
    server: ScriptedServer, job: Job, tmp_path: Path, file: Any, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    serve(server, **{file: change})
    with pytest.raises(DataLoss, match=message):
        job.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", "..", "."])
def test_a_file_cannot_be_put_elsewhere(server: ScriptedServer, job: Job, tmp_path: Path, name: str) -> None:
    evil = a_checkpoint(files=[a_file("model.safetensors", b"x"), a_file(name, b"x")])
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name, b"x", evil))
    with pytest.raises(DataLoss, match="which is no name of a file"):
        job.download(tmp_path / "inside")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["inside"]


def test_a_download_that_breaks_leaves_nothing(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    serve(server, training=lambda messages: [*messages[:2], UNAVAILABLE])
    with pytest.raises(Unavailable, match="no longer answers"):
        job.download(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests["DownloadCheckpoint"]) == 2


def test_a_download_waits_for_a_server_that_is_away_when_it_starts(
    server: ScriptedServer, job: Job, tmp_path: Path
) -> None:
    replies = [UNAVAILABLE, a_download(), UNAVAILABLE, a_download("training.safetensors"), a_download("manifest.json")]
    server.on("DownloadCheckpoint", *replies)
    assert contents(job.download(tmp_path)) == WHOLE


def test_a_checkpoint_that_is_not_there_makes_no_folder(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    server.on("DownloadCheckpoint", Refusal(grpc.StatusCode.NOT_FOUND, "job j-1 has no checkpoint of step 7"))
    with pytest.raises(NotFound, match=r"^job j-1 has no checkpoint of step 7$"):
        job.download(tmp_path / "new", step=7)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_already_is_left_as_it_is(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    (tmp_path / "step-000000000200").mkdir()
    (tmp_path / "step-000000000200" / "mine").touch()
    serve(server)
    with pytest.raises(FileExistsError, match="is there already; remove it or name another directory"):
        job.download(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["step-000000000200", "mine"]


def test_an_interrupted_download_leaves_nothing_and_ends_its_call(
    server: ScriptedServer, job: Job, client: Client, tmp_path: Path, release: threading.Event
) -> None:
    def note_the_end(context: grpc.ServicerContext) -> None:
        context.add_callback(release.set)

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        raise KeyboardInterrupt

    hold = [note_the_end, *a_download()[:2], lambda context: release.wait(timeout=30)]
    server.on("DownloadCheckpoint", hold)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.download(client, "j-1", tmp_path, None, interrupt)
    assert release.wait(timeout=10)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_falls_silent_is_given_up(
    server: ScriptedServer, job: Job, tmp_path: Path, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.client._connection.IDLE_TIMEOUT_S", 0.2)
    server.on("DownloadCheckpoint", [*a_download()[:2], lambda context: release.wait(timeout=30)])
    with pytest.raises(DeadlineExceeded, match=r"^the server at 127.0.0.1:\d+ sent nothing for 0.2 s$"):
        job.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_time_that_a_reader_takes_is_no_silence(
    server: ScriptedServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.client._connection.IDLE_TIMEOUT_S", 0.1)
    serve(server)
    busy = threading.Event()

    def take_time(done_bytes: int, total_bytes: int) -> None:
        busy.wait(0.15)

    path = checkpoints.download(client, "j-1", tmp_path, None, take_time)
    assert contents(path) == WHOLE


def test_downloads_have_no_deadline_as_a_whole(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    serve(server)
    job.download(tmp_path)
    assert all(left is None or left > 1e6 for left in server.seconds_left[1:])


def test_no_thread_outlives_a_download(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    serve(server)
    job.download(tmp_path)
    for thread in threading.enumerate():
        if thread.name == "idle limit":
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_progress_is_told_in_bytes_of_all_files(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    serve(server)
    told: list[tuple[int, int]] = []
    checkpoints.download(client, "j-1", tmp_path, None, lambda done, total: told.append((done, total)))
    assert told[0] == (1000, 5900)  # that there is a manifest is seen when it comes
    assert told[-1] == (5913, 5913)
    assert told == sorted(told)


@pytest.fixture
def weights() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"layer.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)})


def test_weights_are_loaded_as_tensors_by_name(server: ScriptedServer, job: Job, weights: bytes) -> None:
    import torch

    server.on("DownloadCheckpoint", a_download(content=weights))
    state = job.load_state_dict(step=200)
    assert set(state) == {"layer.weight", "count"}
    assert torch.equal(state["layer.weight"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(state["count"], torch.tensor(7))
    state["layer.weight"] += 1  # theirs to change
    assert server.requests["DownloadCheckpoint"] == [
        DownloadCheckpointRequest(job_id="j-1", step=200, file_name="model.safetensors")
    ]


def test_weights_with_wrong_bytes_are_not_loaded(
    server: ScriptedServer, job: Job, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server.on("DownloadCheckpoint", flip(a_download(content=weights)), a_download(content=b"no safetensors"))
    with pytest.raises(DataLoss, match=r"^model\.safetensors came with other bytes than it has"):
        job.load_state_dict()
    with pytest.raises(DataLoss, match=r"^model\.safetensors of j-1 is no safetensors file: "):
        job.load_state_dict()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [["torch"], ["safetensors"], ["torch", "safetensors"]])
def test_what_is_not_installed_is_named_before_anything_is_fetched(
    server: ScriptedServer, job: Job, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage) as caught:
        job.load_state_dict()
    how = "pip install '.[workers]' in a checkout of Lockstep"
    assert str(caught.value).endswith(f"not installed: {', '.join(missing)}; {how}")
    assert isinstance(caught.value, ImportError)
    assert not server.requests["DownloadCheckpoint"]


def test_a_job_that_was_only_validated_has_no_checkpoints(
    server: ScriptedServer, client: Client, tmp_path: Path
) -> None:
    server.on("SubmitJob", a_job(job_id=""))
    job = client.submit_job(DIGITS, validate_only=True)
    for ask in (job.checkpoints, job.pause, job.resume, job.load_state_dict, lambda: job.download(tmp_path)):
        with pytest.raises(LockstepError, match=r"^this job was only validated, not submitted"):
            ask()
