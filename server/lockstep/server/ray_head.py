"""The embedded Ray: a head of our own, apart from every driver, found again after a crash.

`ray stop` would end every Ray on the machine, so ours is known by its temporary folder, whose name stands in the
command line of each of its processes, and is ended by their pids.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from lockstep.server import processes
from lockstep.server.patience import done_within

_OBJECT_STORE_BYTES = 100_000_000
_START_TIMEOUT_S = 60.0
_TERM_TIMEOUT_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class HeadRecord:
    """What is noted of a running head, to find it again."""

    pid: int
    address: str
    temp_dir: str
    num_cpus: int
    num_gpus: int


class RayHead:
    """Starts, adopts and ends one Ray head."""

    def __init__(self, data_dir: Path, *, num_cpus: int, num_gpus: int) -> None:
        self._data_dir = data_dir
        self._record_path = data_dir / "ray.json"
        self._token_path = data_dir / "ray.token"
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._record: HeadRecord | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment of every process that belongs to or speaks with this cluster."""
        if not self._token_path.exists():
            descriptor = os.open(self._token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        return os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_path.resolve()),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_preload_python_modules": "torch",
        }

    async def start(self) -> str:
        """Adopt the head of an earlier server, or start one.

        Returns:
            Its address, host:port.

        Raises:
            RuntimeError: it does not come up.
        """
        found = self._read_record()
        if found is not None and await self._is_usable(found):
            if self._record != found:
                log.info("adopting the embedded Ray of the server before", pid=found.pid, address=found.address)
            self._record = found
            return found.address
        if found is not None:
            await self._end(found)
        self._record = await self._start_new()
        return self._record.address

    def _read_record(self) -> HeadRecord | None:
        try:
            return HeadRecord(**json.loads(self._record_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    async def _is_usable(self, record: HeadRecord) -> bool:
        is_ours = any(record.temp_dir in part for part in processes.command_line(record.pid))
        fits = (record.num_cpus, record.num_gpus) == (self._num_cpus, self._num_gpus)
        host, _, port = record.address.rpartition(":")
        return is_ours and fits and await processes.port_answers(host, int(port))

    async def _start_new(self) -> HeadRecord:
        # Unix socket names are short, and Ray makes long ones of this.
        temp_dir = tempfile.mkdtemp(prefix="lockstep-", dir="/tmp")
        port, client_port, agent_port = processes.free_port(), processes.free_port(), processes.free_port()
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client_port}"),
            # Two heads on one machine would give out the same worker ports: let the kernel choose.
            *(f"--dashboard-agent-listen-port={agent_port}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--include-dashboard=false", "--disable-usage-stats"),
            *(f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={temp_dir}"),
            *(f"--num-cpus={self._num_cpus}", f"--num-gpus={self._num_gpus}"),
        ]
        self._process = self._spawn(command)
        record = HeadRecord(self._process.pid, f"127.0.0.1:{port}", temp_dir, self._num_cpus, self._num_gpus)
        self._record = record
        write_atomically(self._record_path, json.dumps(asdict(record)))
        log.info("starting the embedded Ray", pid=record.pid, cpus=self._num_cpus, gpus=self._num_gpus)
        await self._wait_until_up(record, port)
        return record

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        logs = self._data_dir / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / "ray.log").open("ab") as output:
            # A session of its own: Ctrl-C in the server's terminal is the server's to handle.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )

    async def _wait_until_up(self, record: HeadRecord, port: int) -> None:
        dead = asyncio.create_task(processes.wait_until_dead(record.pid))

        async def answers() -> None:
            while not await processes.port_answers("127.0.0.1", port) and not dead.done():
                await asyncio.wait([dead], timeout=0.1)

        try:
            await done_within(answers(), _START_TIMEOUT_S)
        finally:
            is_dead = dead.done()
            dead.cancel()
            await asyncio.gather(dead, return_exceptions=True)
        if is_dead or not await processes.port_answers("127.0.0.1", port):
            await self.stop()
            raise RuntimeError(f"the embedded Ray does not start; {self._data_dir / 'logs' / 'ray.log'} says why")

    async def wait_until_dead(self) -> None:
        """Return when the head has ended."""
        assert self._record is not None
        await processes.wait_until_dead(self._record.pid)

    async def stop(self) -> None:
        """End the head and everything that it started."""
        if self._record is not None:
            record, self._record = self._record, None
            await self._end(record)

    def kill(self) -> None:
        """End everything at once, without waiting."""
        if self._record is not None:
            for pid in {self._record.pid, *processes.pids_that_name(self._record.temp_dir)}:
                processes.send(pid, signal.SIGKILL)
            shutil.rmtree(self._record.temp_dir, ignore_errors=True)
            self._record_path.unlink(missing_ok=True)

    async def _end(self, record: HeadRecord) -> None:
        # The pid may be another's by now, after a restart of the machine; its command line tells.
        if any(record.temp_dir in part for part in processes.command_line(record.pid)):
            processes.send(record.pid, signal.SIGTERM)
            if not await processes.died_within(record.pid, _TERM_TIMEOUT_S):
                processes.send(record.pid, signal.SIGKILL)
        if self._process is not None and self._process.pid == record.pid:
            await asyncio.to_thread(self._process.wait)
            self._process = None
        left = processes.pids_that_name(record.temp_dir)
        for pid in left:
            processes.send(pid, signal.SIGKILL)
        for pid in left:
            await processes.died_within(pid, _TERM_TIMEOUT_S)
        if Path(record.temp_dir).name.startswith("lockstep-"):
            await asyncio.to_thread(shutil.rmtree, record.temp_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._record_path.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or none."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
