from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import typer
from typer.testing import CliRunner

from lockstep.server import application, main
from lockstep.server.process import children
from lockstep.server.settings import Settings, StartupError
from lockstep.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from tests.support.server import digits_spec

# Nothing listens there: the server serves, and waits for a cluster.
NO_RAY = "127.0.0.1:1"
ANYWHERE = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")


@contextmanager
def server(data_dir: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server without a cluster as a process of its own; yields it with its gRPC address."""
    command = [sys.executable, "-m", "lockstep.server.main", "--data-dir", str(data_dir), "--log-format", "json"]
    process = subprocess.Popen(
        [*command, *(arguments or (*ANYWHERE, "--ray-address", NO_RAY))], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    address = ""
    try:
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                address = event["grpc"]
            if event.get("event") == "no cluster":
                break
        assert address, "the server did not start"
        yield process, address
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


@pytest.mark.parametrize("number", sorted(children.ENDING_SIGNALS))
def test_a_signal_ends_the_server_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with server(tmp_path) as (process, _):
        assert json.loads((tmp_path / "server.json").read_text())["pid"] == process.pid
        process.send_signal(number)
        assert process.wait() == 0
        assert not (tmp_path / "server.json").exists()


def test_a_second_signal_forces_the_end_and_leaves_no_address_behind(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait() == main.EXIT_FORCED
        assert not (tmp_path / "server.json").exists()


def test_the_end_of_a_terminal_comes_more_than_once_and_forces_nothing(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
        assert process.wait() == 0


def test_what_comes_after_the_end_of_a_terminal_forces_nothing_either(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _):
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert any("shutting down" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)  # of those that are sent at once, either may arrive first
        assert process.wait() == 0


def test_a_server_that_was_told_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; inherited
    try:
        with server(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
            process.send_signal(signal.SIGHUP)
            JobServiceStub(channel).SubmitJob(SubmitJobRequest(spec=digits_spec()))
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_were_blocked_by_whoever_started_the_server_reach_it(tmp_path: Path) -> None:
    with children.ending_signals_blocked(), server(tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_server_whose_log_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    with server(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        assert process.stderr is not None
        process.stderr.close()
        job = JobServiceStub(channel).SubmitJob(SubmitJobRequest(spec=digits_spec()))
        (kept,) = JobServiceStub(channel).ListJobs(ListJobsRequest()).jobs
        assert kept.job_id == job.job_id
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("before", ["pass", "sys.stdin = open(os.devnull); sys.stderr = open(os.devnull, 'w')"])
def test_streams_that_were_closed_at_the_start_are_open_for_whatever_is_started(before: str) -> None:
    code = (
        f"import os, sys; {before}; from lockstep.server.logging import open_closed_streams; open_closed_streams(); "
        "report = os.open(sys.argv[1], os.O_WRONLY); "
        "print('lost'); print('lost', file=sys.stderr); read = sys.stdin.read(); "
        "os.write(report, repr((report > 2, read, [os.get_inheritable(n) for n in range(3)])).encode())"
    )
    reading, writing = os.pipe()
    command = ["sh", "-c", f'exec "$0" -c "$1" /dev/fd/{writing} <&- >&- 2>&-', sys.executable, code]
    subprocess.run(command, check=True, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading) as report:
        assert report.read() == repr((True, "", [True] * 3))


def test_a_port_that_is_taken_ends_the_start_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    for option in ("--listen", "--http"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            ended = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "lockstep.server.main",
                    *ANYWHERE,
                    option,
                    address,
                    "--data-dir",
                    tmp_path / "d",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        assert ended.returncode == 2
        assert ended.stderr == (
            f"lockstep serve: cannot listen on {address}: Address already in use; choose another with {option}\n"
        )
        assert not list(tmp_path.iterdir())


def test_clients_that_hang_up_leave_no_word_in_the_log(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _):
        host, _, port = json.loads((tmp_path / "server.json").read_text())["http_address"].rpartition(":")
        for request in (b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01") * 25:
            with socket.create_connection((host, int(port))) as client:
                client.sendall(request)
                # Closed with a reset, as by a program that is killed with an answer under way.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait() == 0
    assert "Traceback" not in told
    assert all(line.startswith("{") for line in told.splitlines())


def test_an_acknowledged_job_outlives_a_killed_server(tmp_path: Path) -> None:
    with server(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        job = JobServiceStub(channel).SubmitJob(SubmitJobRequest(spec=digits_spec()))
        process.kill()
        process.wait()
    with server(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        (kept,) = JobServiceStub(channel).ListJobs(ListJobsRequest()).jobs
        kept.state_reason = job.state_reason  # it says by now that there is no cluster
        assert kept == job
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:50051"], "loopback addresses only"),
        (["--http", "0.0.0.0:50052", "--listen", "127.0.0.1:0"], "--http is '0.0.0.0:50052'"),
        (["--listen", "localhost:50077", "--http", "127.0.0.1:50077"], "--http are the same, 127.0.0.1:50077; give"),
        (["--num-cpus", "0"], "--num-cpus is 0"),
        (["--ray-address", "a:1", "--num-gpus", "1"], "for the embedded Ray"),
        (["--data-dir", "/dev/null/x"], "--data-dir /dev/null/x cannot be used"),
        (["--data-dir", "/dev/null"], "--data-dir /dev/null is no folder"),
        (["--ray-address", "not an address"], "--ray-address is 'not an address'; allowed: host:port"),
    ],
)
def test_what_cannot_work_ends_with_2_and_says_why(tmp_path: Path, arguments: list[str], words: str) -> None:
    app = typer.Typer()
    app.command()(main.serve)
    given = arguments if "--data-dir" in arguments else [*arguments, "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_server_on_the_same_folder_ends_with_2(tmp_path: Path) -> None:
    with server(tmp_path) as (process, _):
        second = subprocess.run(
            [sys.executable, "-m", "lockstep.server.main", "--data-dir", str(tmp_path), *ANYWHERE],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert f"in use by the server with pid {process.pid}" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_processes_are_found_by_their_mark_and_ours_is_never_among_them() -> None:
    code, mark = "print('up', flush=True); input()", "lockstep-test-mark-1"
    marked = subprocess.Popen([sys.executable, "-c", code, mark], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert marked.stdout is not None
        assert marked.stdout.readline() == b"up\n"
        assert children.pids_that_name(mark) == [marked.pid]
        assert os.getpid() not in children.pids_that_name(sys.executable)
    finally:
        marked.communicate(b"\n")


def test_a_process_that_hides_its_command_line_is_found_by_its_open_files(tmp_path: Path) -> None:
    mark = tmp_path / "lockstep-test-mark-2.log"
    with mark.open("w") as output:
        hidden = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=output)
    try:
        assert children.pids_that_name(mark.name) == [hidden.pid]
    finally:
        hidden.communicate(b"\n")


def test_the_addresses_of_a_killed_server_are_gone_before_the_next_one_opens_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.json").write_text('{"pid": 1}')

    def look(data_dir: Path, telemetry: object) -> None:
        assert not (data_dir / "server.json").exists()
        raise StartupError("seen")

    monkeypatch.setattr(application, "_open_store", look)
    settings = Settings(data_dir=tmp_path, listen="127.0.0.1:0", http="127.0.0.1:0")
    with pytest.raises(StartupError, match="seen"):
        asyncio.run(application.Application(settings, keeps_cluster=False).start())


def test_the_server_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys, lockstep.server.main; "
        "wrong = {'ray', 'torch', 'lockstep.workers', 'lockstep.client'} & set(sys.modules); "
        "sys.exit(str(wrong) if wrong else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_server_whose_disk_hangs_ends_without_the_threads_that_wait_for_it(tmp_path: Path) -> None:
    script = (
        "import os, signal, threading\n"
        "from lockstep.server import main\n"
        "stop = main.Application.stop\n"
        "async def hang(self):\n"
        "    await stop(self)\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    return False\n"
        "async def start(self):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "main.Application.start, main.Application.stop = start, hang\n"
        "main.main()\n"
    )
    command = [sys.executable, "-c", script, "--data-dir", str(tmp_path), *ANYWHERE]
    assert subprocess.run(command, timeout=60, stderr=subprocess.DEVNULL).returncode == main.EXIT_FORCED
