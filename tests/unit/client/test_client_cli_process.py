"""The command line as a process of its own: pipes, colours, interrupts, commands of other parts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lockstep.client.cli import plugins
from lockstep.v1.job_service_pb2 import ListJobsResponse
from lockstep.v1.metrics_service_pb2 import ListMetricsResponse
from tests.support.scripted_server import ScriptedServer, a_download, a_job, a_point, an_update
from tests.support.specs import DIGITS
from tests.unit.client.conftest import Lockstep

LOCKSTEP = [sys.executable, "-c", "from lockstep.client.cli import main; main()"]


def run(server: ScriptedServer, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCKSTEP, *arguments],
        env={**os.environ, "LOCKSTEP_TARGET": server.target, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_reader_that_leaves_early_is_no_error(server: ScriptedServer) -> None:
    server.on("GetJob", a_job())
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("train_loss", step, 0.5) for step in range(50_000)]))
    lockstep = subprocess.Popen(
        [*LOCKSTEP, "metrics", "j-1", "-o", "csv"],
        env={**os.environ, "LOCKSTEP_TARGET": server.target},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert lockstep.stdout is not None
    assert lockstep.stderr is not None
    with lockstep:
        assert lockstep.stdout.readline() == b"name,step,epoch,value\n"
        lockstep.stdout.close()
        assert lockstep.stderr.read() == b""
    assert lockstep.returncode == 1


def test_there_are_no_colours_in_a_pipe(server: ScriptedServer) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=[a_job("FAILED")]))
    assert "\x1b" not in run(server, "ls").stdout


def test_no_color_is_respected_where_colours_are_forced(server: ScriptedServer) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=[a_job("FAILED")]))
    assert "\x1b[31m" in run(server, "ls", FORCE_COLOR="1", TERM="xterm").stdout
    assert "\x1b[31m" not in run(server, "ls", FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").stdout


def test_closed_streams_are_no_error(server: ScriptedServer) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=[a_job("FAILED")]))
    environment = {**os.environ, "LOCKSTEP_TARGET": server.target}
    closing = f"{shlex.join([*LOCKSTEP, 'ls'])} >&-"
    done = subprocess.run(["sh", "-c", closing], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    closing = f"{shlex.join([*LOCKSTEP, 'submit', '-f', '-'])} <&-"
    done = subprocess.run(["sh", "-c", closing], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "lockstep: -: standard input is closed\n")


def test_a_full_disk_is_told_without_numbers(server: ScriptedServer) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=[a_job("FAILED")]))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*LOCKSTEP, "ls", "-o", "json"],
            env={**os.environ, "LOCKSTEP_TARGET": server.target},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "lockstep: No space left on device\n")


def test_a_job_id_stays_whole_on_a_narrow_terminal(server: ScriptedServer) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=[a_job("SUCCEEDED", job_id="job-0123456789ab")]))
    assert "job-0123456789ab" in run(server, "ls", COLUMNS="30").stdout


def test_ctrl_c_while_following_leaves_the_job_and_says_so(
    server: ScriptedServer, tmp_path: Path, release: threading.Event
) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(DIGITS))
    server.on("SubmitJob", a_job())
    server.on("ListMetrics", ListMetricsResponse())
    server.on("WatchJob", [an_update("RUNNING", (1, "first step")), lambda context: release.wait(timeout=30)])
    lockstep = subprocess.Popen(
        [*LOCKSTEP, "submit", "-f", str(tmp_path / "job.yaml"), "--follow"],
        env={**os.environ, "LOCKSTEP_TARGET": server.target},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert lockstep.stderr is not None
    with lockstep:
        assert lockstep.stderr.readline() == "running: first step\n"
        lockstep.send_signal(signal.SIGINT)
        out, err = lockstep.communicate(timeout=30)
    assert (lockstep.returncode, out) == (130, "j-1\n")
    assert "j-1 goes on" in err
    assert "Traceback" not in err
    assert not server.requests["CancelJob"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_download_that_is_told_to_end_leaves_nothing_behind(
    server: ScriptedServer, tmp_path: Path, release: threading.Event, number: signal.Signals, code: int
) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("DownloadCheckpoint", [*a_download()[:2], lambda context: release.wait(timeout=30)])
    target = tmp_path / "downloads"
    lockstep = subprocess.Popen(
        [*LOCKSTEP, "download", "j-1", "-o", str(target)],
        env={**os.environ, "LOCKSTEP_TARGET": server.target},
        stderr=subprocess.PIPE,
        text=True,
    )
    with lockstep:
        while not list(target.glob(".*.unfinished/model.safetensors")):
            assert lockstep.poll() is None
        lockstep.send_signal(number)
        _, err = lockstep.communicate(timeout=30)
    assert (lockstep.returncode, "Traceback" in err) == (code, False)
    assert list(target.iterdir()) == []


def test_a_command_under_nohup_does_not_end_when_its_terminal_is_closed() -> None:
    script = (
        "import os, signal; from lockstep.client.cli.ending import clear_up_at_signals; "
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); clear_up_at_signals(); os.kill(os.getpid(), signal.SIGHUP)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_help_lists_every_command_and_the_exit_codes(server: ScriptedServer) -> None:
    done = run(server, "--help")
    assert done.returncode == 0
    jobs = ("submit", "ls", "get", "describe", "metrics", "watch", "wait", "cancel", "pause", "resume", "scale")
    others = ("checkpoints", "download", "models", "datasets", "version", "serve")
    for command in (*jobs, *others):
        assert f"\n  {command} " in done.stdout
    assert "Exit codes:" in done.stdout
    assert "\n  5  the server cannot be reached\n" in done.stdout
    assert not server.requests


def test_version_prints_the_version(server: ScriptedServer) -> None:
    done = run(server, "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lockstep 0.")


def test_an_error_of_our_own_is_no_traceback_unless_asked_for(
    lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("lockstep.client.client.Client.list_models", fail)
    code, out, err = lockstep("models")
    assert (code, out) == (1, "")
    assert err == (
        "lockstep: internal error: ZeroDivisionError: division by zero\nSet LOCKSTEP_DEBUG=1 to see where.\n"
    )


def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, body: str) -> None:
    """Install a command in the place of all others."""
    (tmp_path / "other_part.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "other_part", raising=False)
    entry_point = EntryPoint(name, "other_part:command", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry_point])


COMMAND = """
import typer
def command(listen: str = typer.Option("here", help="Where to listen.")) -> None:
    "Do something else."
    typer.echo(f"listens {listen}")
    raise typer.Exit(9)
"""


def test_another_part_adds_a_command(lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin(monkeypatch, tmp_path, "other", COMMAND)
    assert lockstep("other", "--listen", "there") == (9, "listens there\n", "")
    code, out, _ = lockstep("other", "--help")
    assert code == 0
    assert "Usage: lockstep other" in out
    assert "Where to listen." in out
    code, _, err = lockstep("other", "--nonsense")
    assert code == 2
    assert "nonsense" in err


def test_a_command_of_another_part_is_listed_without_being_loaded(
    lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin(monkeypatch, tmp_path, "other", "raise RuntimeError('loaded')")
    code, out, _ = lockstep("--help")
    assert code == 0
    assert "\n  other " in out


def test_a_command_whose_part_is_not_installed_says_what_to_install(
    lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plugin(monkeypatch, tmp_path, "serve", "import a_part_that_is_not_there")
    code, out, err = lockstep("serve")
    assert (code, out) == (1, "")
    assert err == (
        "lockstep: `lockstep serve` needs the Python module a_part_that_is_not_there, which is not installed: "
        "pip install '.[all]' in a checkout of Lockstep\n"
    )
