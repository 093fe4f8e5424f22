"""Pausing, resuming, scaling and fetching checkpoints from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.scripted_server import (
    Refusal,
    ScriptedServer,
    a_checkpoint,
    a_download,
    a_job,
    an_update,
    checkpoints,
    violations,
)
from tests.unit.client.conftest import Lockstep
from tests.unit.client.test_client_cli_process import LOCKSTEP

HAS_ENDED = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job j-1 has ended")


@pytest.fixture(autouse=True)
def _a_running_job(server: ScriptedServer) -> None:
    server.on("GetJob", a_job("RUNNING"))


def test_pause_waits_until_the_job_is_paused(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("PauseJob", a_job("PAUSING"))
    server.on("WatchJob", [an_update("PAUSING", (1, "a")), an_update("PAUSED", (2, "b")), an_update("QUEUED")])
    assert lockstep("pause", "j-1") == (0, "", "j-1 is pausing\nj-1 is paused\n")


@pytest.mark.parametrize(("arguments", "state"), [((), "PAUSED"), (("--no-wait",), "PAUSING")])
def test_pause_does_not_wait_when_it_need_not(
    server: ScriptedServer, lockstep: Lockstep, arguments: Any, state: str
) -> None:
    server.on("PauseJob", a_job(state))
    assert lockstep("pause", "j-1", *arguments) == (0, "", f"j-1 is {state.lower()}\n")
    assert not server.requests["WatchJob"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("SUCCEEDED", "j-1 ended before it was seen paused: it is SUCCEEDED"),
        ("FAILED", "j-1 ended before it was seen paused: it is FAILED"),
        ("RUNNING", "j-1 went on before it was seen paused: it is RUNNING"),
    ],
)
def test_a_job_that_does_not_come_to_be_paused_exits_with_7(
    server: ScriptedServer, lockstep: Lockstep, state: str, said: str
) -> None:
    server.on("PauseJob", a_job("PAUSING"))
    server.on("WatchJob", [an_update("PAUSING"), an_update(state)])
    assert lockstep("pause", "j-1") == (7, "", f"j-1 is pausing\nlockstep: {said}\n")


def test_a_pause_that_fails_says_why(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("PauseJob", a_job("PAUSING"))
    why = "the pause has failed, and training goes on: the checkpoint of step 7 could not be written"
    server.on("WatchJob", [an_update("PAUSING"), an_update("RUNNING", state_reason=why)])
    code, out, err = lockstep("pause", "j-1")
    assert (code, out) == (7, "")
    assert err.endswith(f"it is RUNNING, {why}\n")


@pytest.mark.parametrize(
    ("command", "method"), [(["pause"], "PauseJob"), (["resume"], "ResumeJob"), (["scale", "--workers=2"], "UpdateJob")]
)
def test_a_change_that_comes_too_late_exits_with_7(
    server: ScriptedServer, lockstep: Lockstep, command: Any, method: str
) -> None:
    server.on(method, HAS_ENDED)
    assert lockstep(*command, "j-1") == (7, "", "lockstep: job j-1 has ended\n")


def test_ctrl_c_while_waiting_for_a_pause_says_that_it_goes_on(
    server: ScriptedServer, release: threading.Event
) -> None:
    server.on("PauseJob", a_job("PAUSING"))
    server.on("WatchJob", [an_update("PAUSING"), lambda context: release.wait(timeout=30)])
    lockstep = subprocess.Popen(
        [*LOCKSTEP, "pause", "j-1"],
        env={**os.environ, "LOCKSTEP_TARGET": server.target},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert lockstep.stderr is not None
    with lockstep:
        assert lockstep.stderr.readline() == "j-1 is pausing\n"
        lockstep.send_signal(signal.SIGINT)
        out, err = lockstep.communicate(timeout=30)
    assert (lockstep.returncode, out, err) == (130, "", "\nj-1 goes on pausing\n")


def test_resume_tells_the_state(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("ResumeJob", a_job("QUEUED"))
    assert lockstep("resume", "j-1") == (0, "", "j-1 is queued\n")


@pytest.mark.parametrize(("workers", "said"), [(3, "3 workers"), (1, "1 worker")])
def test_scale_tells_what_is_wanted_now(server: ScriptedServer, lockstep: Lockstep, workers: int, said: str) -> None:
    server.on("UpdateJob", a_job("RUNNING", spec=JobSpec(resources={"workers": workers})))
    assert lockstep("scale", "j-1", "--workers", str(workers)) == (0, "", f"j-1 is running, with {said} wanted\n")
    assert server.requests["UpdateJob"][0].workers == workers


def test_scaling_out_of_bounds_exits_with_3(server: ScriptedServer, lockstep: Lockstep) -> None:
    details = violations("SPEC_INVALID", resources__workers="must be at most 4 (resources.shards), is 9")
    server.on("UpdateJob", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid", details))
    code, out, err = lockstep("scale", "j-1", "--workers", "9")
    assert (code, out) == (3, "")
    assert err == "lockstep: resources.workers: must be at most 4 (resources.shards), is 9\n"


def test_checkpoints_are_listed_as_a_table(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("ListCheckpoints", checkpoints(a_checkpoint(100_400), token="more"), checkpoints(a_checkpoint(200)))
    code, out, err = lockstep("checkpoints", "j-1")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["STEP", "SIZE", "CREATED", "WEIGHTS"],
        ["100400", "5.8", "KiB", "now", "abababababababab"],
        ["200", "5.8", "KiB", "now", "abababababababab"],
    ]


def test_checkpoints_as_json_have_everything(server: ScriptedServer, lockstep: Lockstep) -> None:
    whole = a_checkpoint(200)
    whole.create_time.FromJsonString("2024-05-17T12:00:00.5Z")
    server.on("ListCheckpoints", checkpoints(whole))
    (checkpoint,) = json.loads(lockstep("checkpoints", "j-1", "-o", "json")[1])
    assert checkpoint["files"][1] == {
        "name": "training.safetensors",
        "size_bytes": 2400,
        "sha256": whole.files[1].sha256,
    }
    del checkpoint["files"]
    assert checkpoint == {
        "job_id": "j-1",
        "step": 200,
        "uri": "/data/j-1/step-000000000200",
        "create_time": "2024-05-17T12:00:00.500000Z",
        "weights_digest": "ab" * 32,
    }


def test_a_job_without_checkpoints_says_so_on_standard_error(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("ListCheckpoints", checkpoints())
    assert lockstep("checkpoints", "j-1") == (0, "", "no checkpoints\n")
    assert lockstep("checkpoints", "j-1", "-o", "json") == (0, "[]\n", "")


def test_download_prints_only_the_folder_on_standard_output(
    server: ScriptedServer, lockstep: Lockstep, tmp_path: Path
) -> None:
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name))
    code, out, err = lockstep("download", "j-1", "--step", "200", "-o", str(tmp_path))
    assert (code, out, err) == (0, f"{tmp_path}/step-000000000200\n", "")
    names = sorted(path.name for path in Path(out.strip()).iterdir())
    assert names == ["manifest.json", "model.safetensors", "training.safetensors"]
    assert server.requests["DownloadCheckpoint"][0].step == 200


def test_a_download_on_a_terminal_shows_a_bar(
    server: ScriptedServer, lockstep: Lockstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name))
    code, out, err = lockstep("download", "j-1", "-o", str(tmp_path))
    assert (code, out) == (0, f"{tmp_path}/step-000000000200\n")
    assert "5.8/5.8 KiB" in err


def test_downloads_that_cannot_be_say_why(server: ScriptedServer, lockstep: Lockstep, tmp_path: Path) -> None:
    missing = Refusal(grpc.StatusCode.NOT_FOUND, "job j-1 has no checkpoint of step 7")
    damaged = Refusal(grpc.StatusCode.DATA_LOSS, "model.safetensors has changed")
    server.on("DownloadCheckpoint", missing, damaged, a_download())
    (tmp_path / "step-000000000200").mkdir()
    there = f"{tmp_path}/step-000000000200 is there already; remove it, or name another folder with -o"
    download = ("download", "j-1", "-o", str(tmp_path))
    assert lockstep(*download) == (4, "", "lockstep: job j-1 has no checkpoint of step 7\n")
    assert lockstep(*download) == (1, "", "lockstep: model.safetensors has changed\n")
    assert lockstep(*download) == (7, "", f"lockstep: {there}\n")


def test_a_download_goes_into_this_folder_unless_another_is_named(
    server: ScriptedServer, lockstep: Lockstep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.on("DownloadCheckpoint", lambda request: a_download(request.file_name))
    assert lockstep("download", "j-1")[:2] == (0, "step-000000000200\n")
    assert (tmp_path / "step-000000000200").is_dir()
