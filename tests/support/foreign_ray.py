"""A Ray cluster that is not Lockstep's: started as its owner starts one, and open to the network as Ray is."""

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lockstep.server.process import children

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 120


class ForeignRay:
    """A head, and other nodes that come and go.

    Attributes:
        address: of the head, host:port.
        environment: what whoever uses the cluster needs.
    """

    def __init__(self, num_cpus: int) -> None:
        self._folder = Path(tempfile.mkdtemp(dir="/tmp"))  # Unix socket names are short
        token = self._folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        port, client_port, agent_port = (children.free_port() for _ in range(3))
        self.address = f"127.0.0.1:{port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._start(
            *("--head", f"--port={port}", f"--ray-client-server-port={client_port}", f"--num-cpus={num_cpus}"),
            *(f"--dashboard-agent-listen-port={agent_port}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--include-dashboard=false", f"--temp-dir={self._folder / 'ray'}"),
        )
        pause = threading.Event()  # no event tells of another process
        for _ in range(START_TIMEOUT_S * 10):
            if asyncio.run(children.port_answers("127.0.0.1", port)):
                return
            pause.wait(0.1)
        self.close()
        raise AssertionError("the Ray of the test does not come up")

    @property
    def head(self) -> psutil.Process:
        """What keeps the head's processes."""
        return psutil.Process(self._nodes[0].pid)

    def add_node(self, num_cpus: int) -> None:
        """Start another node; returns at once."""
        self._start(f"--address={self.address}", f"--num-cpus={num_cpus}")

    def kill_newest_node(self) -> None:
        """SIGKILL everything on it at once."""
        node = self._nodes.pop()
        found = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        psutil.wait_procs(found, timeout=10)

    def close(self) -> None:
        """End all nodes."""
        while self._nodes:
            self.kill_newest_node()
        for pid in children.pids_that_name(str(self._folder)):
            psutil.Process(pid).kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *options: str) -> None:
        command: list[str | Path] = [
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            "--num-gpus=0",
            "--object-store-memory=80000000",
        ]
        self._nodes.append(
            subprocess.Popen(
                [*command, *options],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )


@contextlib.contextmanager
def foreign_ray(monkeypatch: pytest.MonkeyPatch, num_cpus: int) -> Iterator[ForeignRay]:
    """Run one, with what its users need in the environment of this process."""
    cluster = ForeignRay(num_cpus)
    try:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield cluster
    finally:
        cluster.close()
