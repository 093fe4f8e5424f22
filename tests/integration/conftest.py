"""A real server with a real Ray, as a user starts it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lockstep.client import Client, Job

MARK = "LOCKSTEP_TEST_MARK"
AGENT = "ray::NodeAgent"
LOCKSTEP = Path(sys.executable).with_name("lockstep")
START_TIMEOUT_S = 150
TEST_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that start a Ray take longer than others: on a busy machine some need more than three minutes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


class Server:
    """One data folder and, between `start` and `stop` or `kill`, a server on it.

    All processes that come from it carry a mark in their environment, by which they are found.
    """

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.mark = uuid.uuid4().hex
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data_dir.with_suffix(".log")

    def start(self) -> "Server":
        """Start the server; returns when it answers."""
        command: list[str | Path] = [
            LOCKSTEP,
            "serve",
            "--data-dir",
            self.data_dir,
            "--log-format",
            "json",
            *self._options,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
                stderr=log,
                env=os.environ | {MARK: self.mark},
                start_new_session=True,
            )
        self.wait_until(lambda: (self.data_dir / "server.json").exists())
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def addresses(self) -> dict[str, Any]:
        """What the server has written of where it listens."""
        addresses: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        return addresses

    def client(self) -> Client:
        return Client(self.addresses()["grpc_address"])

    def kill(self) -> None:
        """SIGKILL the server, and nothing that it has started."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        (self.data_dir / "server.json").unlink()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server as an operator does; returns its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        status = self._process.wait(60)
        self._process = None
        return status

    def processes(self, name: str = "") -> list[psutil.Process]:
        """All living processes that come from this server and have `name` in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
                if is_ours and name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def workers(self, job: Job | None = None) -> list[psutil.Process]:
        """All worker processes, idle ones among them; or those that work for a job, in the order of their numbers."""
        if job is None:
            return self.processes("ray::Worker")
        found: list[int] = []

        def all_are_up() -> bool:
            found[:] = pids_of(asking, job)
            return bool(found) and all(found)

        with self.client() as asking:
            self.wait_until(all_are_up)
        return [psutil.Process(pid) for pid in found]

    def wait_until_nobody_works(self) -> None:
        """Wait until no worker works for a job; those that are idle may stay."""
        with self.client() as client:
            self.wait_until(lambda: not any(worker.job_id for node in client.list_nodes() for worker in node.workers))

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, event: str, count: int = 1) -> None:
        """Wait until the server has logged an event so many times."""
        self.wait_until(lambda: self.count_in_log(event) >= count)

    def count_in_log(self, event: str) -> int:
        """How often the server has logged an event."""
        return self.log().count(f'"event": "{event}"')

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that no event tells, while the server lives."""
        pause = threading.Event()  # the log of another process gives no event to wait for
        for _ in range(START_TIMEOUT_S * 50):
            if is_so():
                return
            assert self._process is not None
            assert self._process.poll() is None, f"the server has ended:\n{self.log()}"
            pause.wait(0.02)
        raise AssertionError(f"waited in vain for {is_so}:\n{self.log()}")


def pids_of(client: Client, job: Job) -> list[int]:
    """The processes that work for a job, by the workers' numbers; 0 for one that is not up."""
    workers = [worker for node in client.list_nodes() for worker in node.workers if worker.job_id == job.job_id]
    return [worker.pid for worker in sorted(workers, key=lambda worker: worker.number or 0)]


@pytest.fixture
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Make servers; all are stopped at the end, and must leave no process."""
    with _servers(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was. Its Ray counts four CPUs, however many there are."""
    with _servers(tmp_path_factory) as make:
        yield make("--num-cpus", "4").start()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@contextlib.contextmanager
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers = []

    def make(*options: str) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server") / "data", *options))
        return servers[-1]

    try:
        yield make
    finally:
        left, statuses = [], []
        for server in servers:
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it is one of those that are left
                statuses.append(server.stop())
            left += server.processes()
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"
        assert not any(statuses), f"ended with: {statuses}"


def digits(workers: int = 2, min_workers: int = 1, **training: Any) -> dict[str, Any]:
    """A job on the built-in digits."""
    return {
        "name": "digits",
        "model": {"mlp": {"hidden_units": [32], "dropout": [0.2]}},
        "data": {"builtin": {"name": "digits"}},
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
        "training": {"max_epochs": 2, "batch_size": 100, "seed": 7, "log_every_steps": 5} | training,
        "resources": {"workers": workers, "min_workers": min_workers},
    }


def quick(workers: int = 2, min_workers: int = 1, **training: Any) -> dict[str, Any]:
    """A job of as many steps whose workers start sooner: they make up their data."""
    sizes = {"train_size": 1437, "validation_size": 360}
    return digits(workers, min_workers, **training) | {
        "name": "quick",
        "data": {"synthetic_regression": {"w": [1, -2, 3, -4, 5, -6, 7, -8], "b": 4.2, **sizes}},
        "optimizer": {"sgd": {"learning_rate": 0.001, "momentum": 0.9}},
    }


def endless(workers: int = 2) -> dict[str, Any]:
    """A job that does not end by itself while a test runs."""
    spec = quick(workers, max_steps=100_000_000, log_every_steps=1000)
    del spec["training"]["max_epochs"]
    return spec


def wait_for_event(job: Job, words: str) -> None:
    """Wait until an event of a job says something."""
    seen: list[str] = []
    for update in job.watch():
        seen += [event.message for event in update.events]
        if any(words in message for message in seen):
            return
    raise AssertionError(f"{job.job_id} never told {words!r} but {seen}")


def wait_for_state(job: Job, state: str) -> Job:
    """Wait until a job is in a state."""
    for update in job.watch():
        if str(update.job.state) == state:
            return job
    raise AssertionError(f"{job.job_id} never was {state}: {job.refresh()}: {job.error}")


def wait_for_step(job: Job, step: int) -> Job:
    """Wait until a job has come so far."""
    for update in job.watch():
        if update.job.progress.step >= step:
            return job
    raise AssertionError(f"{job.job_id} never reached step {step}: {job.refresh()}: {job.error}")
