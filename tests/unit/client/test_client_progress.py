"""How a job gets on, shown to whoever waits: whole lines in a pipe, what matters most on a terminal."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lockstep.client import Client, progress
from lockstep.client.errors import JobCancelled, WaitTimeout
from lockstep.client.job import Job
from lockstep.v1.metrics_service_pb2 import ListMetricsResponse
from tests.support.scripted_server import ScriptedServer, a_job, a_point, an_update
from tests.unit.client.conftest import Lockstep
from tests.unit.client.test_client_terminal import Terminal


@pytest.fixture
def job(server: ScriptedServer, client: Client) -> Job:
    server.on("GetJob", a_job("RUNNING"))
    return client.get_job("j-1")


def test_a_short_job_off_a_terminal_ends_with_a_line_of_where_it_ended(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [{"step": step, "total_steps": 60, "epoch": step / 20} for step in (10, 40, 60)]
    updates = [an_update("RUNNING", progress=progress) for progress in steps]
    server.on("WatchJob", [*updates, an_update("SUCCEEDED", progress=steps[-1], result={"weights_digest": "ab"})])
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("val_loss", 60, 0.25)]))
    job.wait(progress=True)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("epoch 0.5/3  step 10/60")
    assert told[1:] == ["epoch 3/3  step 60/60  val loss 0.25", "succeeded"]


def test_waiting_in_a_pipe_tells_how_it_gets_on(server: ScriptedServer, lockstep: Lockstep) -> None:
    progress = {"step": 40, "total_steps": 60, "epoch": 2.0}
    server.on("GetJob", a_job("RUNNING"))
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("val_loss", 40, 0.25)]))
    server.on("WatchJob", [an_update("RUNNING", progress=progress), an_update("CANCELLED", progress=progress)])
    code, out, err = lockstep("wait", "j-1")
    assert (code, out) == (1, "")
    assert err.splitlines() == ["epoch 2/3  step 40/60  val loss 0.25", "lockstep: j-1 was cancelled"]


WHY = "waits for 2 workers with 1 CPU each; room for 0 now (0 of 2 CPUs free)"


@pytest.mark.parametrize("on", ["a pipe", "a terminal"])
def test_a_job_that_goes_on_waiting_says_why(
    server: ScriptedServer,
    release: threading.Event,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    on: str,
) -> None:
    monkeypatch.setattr(progress, "_WAITS_AFTER_S", 0.0)
    waiting = an_update("QUEUED", (1, "submitted"), state_reason=WHY)
    server.on("GetJob", waiting.job)
    server.on("WatchJob", [waiting, lambda context: release.wait(timeout=30)])
    if on == "a terminal":
        with Terminal(server, "wait", "j-1") as terminal:
            terminal.wait_for("queued: waits for 2 workers")
        return
    with Client(server.target) as client:
        job = client.get_job("j-1")
        with pytest.raises(WaitTimeout):
            job.wait(2.0, progress=True)
    told = capfd.readouterr().err.splitlines()
    assert sorted(told) == ["queued: submitted", f"queued: {WHY}"]  # the reason is told by a clock of its own


def test_a_job_that_starts_at_once_is_not_said_to_wait(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = an_update("QUEUED", (1, "submitted"), state_reason=WHY)
    server.on("WatchJob", [waiting, an_update("CANCELLED")])
    with pytest.raises(JobCancelled):
        job.wait(progress=True)
    assert capsys.readouterr().err.splitlines() == ["queued: submitted"]


def test_the_bar_shows_validation_in_80_columns(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    progress = {"step": 60, "total_steps": 60, "epoch": 3.0}
    server.on("WatchJob", [an_update("RUNNING", progress=progress), an_update("SUCCEEDED", progress=progress)])
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "samples_per_second")
    server.on("ListMetrics", ListMetricsResponse(points=[a_point(name, 60, 0.25) for name in names]))
    job.wait(progress=True)
    assert "loss 0.25  val loss 0.25  val accuracy 0.250" in capsys.readouterr().err


def test_waiting_on_a_terminal_shows_progress_and_is_left_with_one_line(
    server: ScriptedServer, release: threading.Event
) -> None:
    progress = {"step": 30, "total_steps": 60, "epoch": 1.5}
    update = an_update("RUNNING", progress=progress)
    server.on("GetJob", update.job)
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("val_loss", 30, 0.25)]))
    server.on("WatchJob", [update, lambda context: release.wait(timeout=30)])
    with Terminal(server, "wait", "j-1") as terminal:
        terminal.wait_for("val loss 0.25")
        os.kill(terminal.process.pid, signal.SIGINT)
        shown = terminal.end()
    assert terminal.process.returncode == 130
    last = shown[shown.rindex("\x1b[2K") :]  # what was drawn is erased
    assert "epoch" not in last
    assert "j-1 goes on" in last
