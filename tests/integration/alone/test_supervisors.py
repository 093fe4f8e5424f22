"""A server with a real Ray in surroundings that it did not choose: a supervisor, a strange environment."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Server, endless, wait_for_state, wait_for_step

MakeServer = Callable[..., Server]


def test_a_signal_to_all_processes_at_once_is_as_one_to_the_server_wherever_that_was_started(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random.py", "queue.py", "ray.py", "grpc.py", "lockstep/__init__.py"):
        (tmp_path / "exercises" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "exercises" / name).write_text("x = 1\n")
    temporary = tmp_path / "odd ünï %20 # dir"
    temporary.mkdir()
    monkeypatch.chdir(tmp_path / "exercises")
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("RAY_ADDRESS", "10.9.8.7:6379")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.delenv("HOME", raising=False)
    server = make_server("--num-cpus", "1", "--warm-workers", "0").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(endless(workers=1)), 50)
    processes = server.processes()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert server.stop(signal.SIGHUP) == 0, "some supervisors send it after the other; it forces nothing"
    assert not server.processes()
    server.start()
    with server.client() as client:
        job = wait_for_state(client.get_job(job.job_id), "RUNNING")
        assert (job.attempt, job.restarts) == (2, 0)
        assert any("going on from the checkpoint of step" in event.message for event in job.events())
        wait_for_state(job.cancel(), "CANCELLED")
    server.wait_until_nobody_works()
    assert server.stop() == 0
    assert not list((temporary / f"lockstep-logs-{os.getuid()}").iterdir()), "folders for logs are left"
