"""A server for benchmarks: `lockstep serve` on free ports in its own folder, and the processes that come from it."""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lockstep.client import Client, Worker

START_TIMEOUT_S = 60
MARK = "LOCKSTEP_BENCH_MARK"


class Server:
    """A server that can be killed and started again.

    Args:
        data_dir: its folder.
        num_cpus: CPUs of the embedded Ray.
        options: more of `lockstep serve`.
    """

    def __init__(self, data_dir: Path, num_cpus: int, *options: str) -> None:
        self.data_dir, self._num_cpus, self._options = data_dir, num_cpus, options
        self.mark = uuid.uuid4().hex
        self._log = data_dir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when its cluster is ready."""
        command: list[str | Path] = [Path(sys.executable).with_name("lockstep"), "serve", "--data-dir", self.data_dir]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--num-cpus", str(self._num_cpus)]
        self._log.touch()
        ready_before = self._log.read_bytes().count(b"the cluster is ready")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stderr=log,
                env=os.environ | {MARK: self.mark},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._log.read_bytes().count(b"the cluster is ready") == ready_before:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self._log.read_text()[-5000:])
            time.sleep(0.05)

    @property
    def target(self) -> str:
        """Its gRPC address."""
        address: str = json.loads((self.data_dir / "server.json").read_text())["grpc_address"]
        return address

    def kill(self) -> None:
        """SIGKILL the server, and nothing that it has started."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it as an operator does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Living processes that come from this server and whose command line holds `title`."""
        return marked(self.mark, title)


def marked(mark: str, title: str = "") -> list[psutil.Process]:
    """Living processes that carry a mark in their environment and hold `title` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
            if is_ours and title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def workers_of(client: Client) -> list[Worker]:
    """All worker processes that a server knows of, idle ones among them."""
    return [worker for node in client.list_nodes() for worker in node.workers]


@contextmanager
def server(num_cpus: int, *options: str) -> Iterator[Server]:
    """Run a server with an embedded Ray, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        running = Server(Path(folder), num_cpus, *options)
        try:
            running.start()
            yield running
        finally:
            running.stop()
