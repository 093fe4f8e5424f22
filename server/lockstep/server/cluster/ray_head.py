"""The embedded Ray: a head of our own, apart from every driver, found again after a crash.

`ray stop` would end every Ray on the machine, so ours is known by its temporary folder, whose name stands in the
command line or among the open files of each of its processes, and is ended by their pids.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import structlog

from lockstep.server.cluster import ray_hook
from lockstep.server.cluster.ray_environment import TOKEN_PATH, environment_of_embedded, made_of
from lockstep.server.process import children
from lockstep.server.process.private_files import write_atomically
from lockstep.server.process.timeouts import done_within

_OBJECT_STORE_BYTES = 100_000_000
_START_TIMEOUT_S = 180.0
# How often it is looked for processes that others have started while they were ended, where nobody can wait.
_MOST_LOOKS = 3
_FOLDER_PREFIX = "lockstep-"
_TOKEN = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class HeadRecord:
    """What is noted of a running head, to find it again.

    Attributes:
        made_of: what decides which code its workers run, and the digest of its token; none in those of old versions.
    """

    pid: int
    address: str
    temp_dir: str
    num_cpus: int
    num_gpus: int
    made_of: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """The folder that is removed with the head: private, with Ray's own, which all may write to, inside of it."""
        candidates = (Path(self.temp_dir), Path(self.temp_dir).parent)
        return next((folder for folder in candidates if folder.name.startswith(_FOLDER_PREFIX)), None)

    def pids(self) -> list[int]:
        """Those of its processes that are there; the head first, so that it does not miss the others."""
        found = set(children.pids_that_name(self.temp_dir))
        if not self.head_is_there():
            return sorted(found)
        found.update(children.pids_of_session(self.pid))
        return [self.pid, *sorted(found - {self.pid})]

    def head_is_there(self) -> bool:
        """Whether the head itself lives. Its pid may be another's by now; the command line tells."""
        return any(self.temp_dir in part for part in children.command_line(self.pid))


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
        self._read_token()
        return environment_of_embedded(self._token_path, os.environ)

    def _read_token(self) -> str:
        """Return the cluster's token; one that is missing or damaged is made anew."""
        token = ""
        with contextlib.suppress(OSError, ValueError):
            token = self._token_path.read_text()
        if not _TOKEN.fullmatch(token):
            if self._token_path.exists():
                log.warning("the token of the embedded Ray was damaged and is replaced", path=str(self._token_path))
            token = secrets.token_hex(32)
            write_atomically(self._token_path, token)
        return token

    def _made_of(self) -> dict[str, str]:
        return made_of() | {"token": hashlib.sha256(self._read_token().encode()).hexdigest()[:16]}

    async def start(self) -> str:
        """Adopt the head of an earlier server, or start one.

        Returns:
            Its address, host:port.

        Raises:
            RuntimeError: it does not come up.
        """
        found = self._read_record()
        if found is not None and self._is_of_another_folder(found):
            log.info("the Ray of ray.json belongs to another data folder and is left alone", pid=found.pid)
            found = None
        if found is not None:
            why_not = await self._why_unusable(found)
            if not why_not:
                if self._record != found:
                    log.info("adopting the embedded Ray of the server before", pid=found.pid, address=found.address)
                self._record = found
                return found.address
            if found.pids():
                log.warning("replacing the embedded Ray of the server before", pid=found.pid, why=why_not)
            await self._end(found)
        self._record = await self._start_new()
        return self._record.address

    def _read_record(self) -> HeadRecord | None:
        known = {field.name for field in fields(HeadRecord)}
        try:
            noted = json.loads(self._record_path.read_text())
            return HeadRecord(**{key: value for key, value in noted.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def _is_of_another_folder(self, record: HeadRecord) -> bool:
        """Whether a living head was started for a folder of which ours is a copy; the place of its token tells."""
        for pid in record.pids():
            token_path = children.environment_of(pid).get(TOKEN_PATH)
            if token_path is not None:
                with contextlib.suppress(OSError):
                    return not Path(token_path).parent.samefile(self._data_dir)
                return False  # that folder is gone: ours is it, and was moved
        return False

    async def _why_unusable(self, record: HeadRecord) -> str:
        """Say why a head cannot be adopted; empty when it can be."""
        if not record.head_is_there():
            return "it has died"
        if (record.num_cpus, record.num_gpus) != (self._num_cpus, self._num_gpus):
            return f"it has {record.num_cpus} CPUs and {record.num_gpus} GPUs"
        made = self._made_of()
        others = sorted(name for name in {*made, *record.made_of} if made.get(name) != record.made_of.get(name))
        if others:
            return f"it was started with another {', '.join(others)}"
        token_path = children.environment_of(record.pid).get(TOKEN_PATH)
        if token_path is not None and Path(token_path) != self._token_path.resolve():
            return f"the data folder was at {Path(token_path).parent}"
        host, _, port = record.address.rpartition(":")
        return "" if await children.port_answers(host, int(port)) else "it does not answer"

    async def _start_new(self) -> HeadRecord:
        # Unix socket names are short, and Ray makes long ones of this. Whatever Ray makes there all may write to, so
        # it lies in a folder that is closed to others.
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp"))
        temp_dir = str(folder / "ray")
        port, agent_port = children.free_port(), children.free_port()
        command = [
            # Not a module of the working directory in place of one that Ray wants.
            *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={port}"),
            # Two heads on one machine would give out the same worker ports: let the kernel choose.
            *(f"--dashboard-agent-listen-port={agent_port}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--include-dashboard=false", "--disable-usage-stats"),
            # It is no cluster that grows by itself, and what workers print is collected by Lockstep.
            *("--no-monitor", "--include-log-monitor=false"),
            *(f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={temp_dir}"),
            *(f"--num-cpus={self._num_cpus}", f"--num-gpus={self._num_gpus}"),
        ]
        try:
            made = self._made_of()
            self._process = self._spawn(command)
        except BaseException:
            folder.rmdir()
            raise
        record = HeadRecord(self._process.pid, f"127.0.0.1:{port}", temp_dir, self._num_cpus, self._num_gpus, made)
        self._record = record
        log.info("starting the embedded Ray", pid=record.pid, cpus=self._num_cpus, gpus=self._num_gpus)
        try:
            write_atomically(self._record_path, json.dumps(asdict(record)))
            await self._wait_until_up(record, port)
        except BaseException:  # nobody would find it again
            await self.stop()
            raise
        return record

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        logs = self._data_dir / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        hook = ray_hook.without_client_server
        with (logs / "ray.log").open("ab") as output, children.ending_signals_blocked():
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._data_dir,
                env=self.environment() | {"RAY_START_HOOK": f"{hook.__module__}.{hook.__name__}"},
                start_new_session=True,
            )

    async def _wait_until_up(self, record: HeadRecord, port: int) -> None:
        dead = asyncio.create_task(children.wait_until_dead(record.pid))

        async def answers() -> None:
            while not await children.port_answers("127.0.0.1", port) and not dead.done():
                await asyncio.wait([dead], timeout=0.1)

        try:
            await done_within(answers(), _START_TIMEOUT_S)
        finally:
            is_dead = dead.done()
            dead.cancel()
            await asyncio.gather(dead, return_exceptions=True)
        if is_dead or not await children.port_answers("127.0.0.1", port):
            raise RuntimeError(f"the embedded Ray does not start; {self._data_dir / 'logs' / 'ray.log'} says why")

    async def wait_until_dead(self) -> None:
        """Return when the head has ended."""
        assert self._record is not None
        await children.wait_until_dead(self._record.pid)

    async def stop(self) -> None:
        """End the head and everything that it started."""
        if self._record is not None:
            record, self._record = self._record, None
            await self._end(record)

    def kill(self) -> None:
        """End everything at once, without waiting."""
        if self._record is not None:
            for _ in range(_MOST_LOOKS):
                for pid in self._record.pids():
                    children.send(pid, signal.SIGKILL)
            self._remove(self._record)

    async def _end(self, record: HeadRecord) -> None:
        # By SIGKILL, as none of them listens to SIGTERM. The workers have left in order before, and Ray keeps nothing
        # that would have to be put away. Some start others while they are ended, so that it takes a second look.
        while pids := await asyncio.to_thread(record.pids):
            for pid in pids:
                children.send(pid, signal.SIGKILL)
            for pid in pids:
                await self._has_died(pid)
        await asyncio.to_thread(self._remove, record)

    async def _has_died(self, pid: int) -> None:
        if self._process is not None and self._process.pid == pid:
            await asyncio.to_thread(self._process.wait)
            self._process = None
        else:
            await children.wait_until_dead(pid)

    def _remove(self, record: HeadRecord) -> None:
        if record.folder is not None:
            shutil.rmtree(record.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._record_path.unlink()
