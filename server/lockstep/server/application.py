"""The coordinator's parts, put together: what starts and stops with a server, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import IO

import structlog

from lockstep.server.cluster import ClusterKeeper, LauncherFacts
from lockstep.server.coordinator import Coordinator
from lockstep.server.dispatcher import Cluster
from lockstep.server.gangs import single_node
from lockstep.server.grpc_server import GrpcServer
from lockstep.server.http import HttpServer
from lockstep.server.launcher_process import launcher_is_installed
from lockstep.server.log_store import LogStore
from lockstep.server.orders import Orders, read_secret
from lockstep.server.ray_head import RayHead, write_atomically
from lockstep.server.rules import Site
from lockstep.server.settings import (
    Settings,
    StartupError,
    available_cpus,
    available_gpus,
    available_memory_bytes,
    loopback_address,
)
from lockstep.server.store import DAMAGES, Store, StoreError, is_full_disk, why_unopenable
from lockstep.server.telemetry import Telemetry
from lockstep.server.telemetry.collector import SnapshotCollector
from lockstep.server.telemetry.snapshot import Camera

_CALLS_GRACE_S = 5.0
_LAG_MEASURED_EVERY_S = 0.5

log = structlog.get_logger(__name__)


class Application:
    """One server. With `keeps_cluster=False` somebody else brings the launcher, as tests do.

    Attributes:
        launcher_token: what the launcher must show.
        node_token: what the agents of nodes must show, once started.
        grpc_address: host:port, once started.
        http_address: host:port, once started.
    """

    def __init__(self, settings: Settings, *, keeps_cluster: bool = True) -> None:
        self.launcher_token = secrets.token_urlsafe(24)
        self.node_token = ""
        self.grpc_address = ""
        self.http_address = ""
        self._settings = settings
        self._data_dir = settings.data_dir
        self._store_path = settings.data_dir / "lockstep.db"
        self._keeps_cluster = keeps_cluster
        self._lock: IO[str] | None = None
        self._http: HttpServer | None = None
        self._store: Store | None = None
        self._logs: LogStore | None = None
        self._grpc: GrpcServer | None = None
        self._keeper: ClusterKeeper | None = None
        self._lag_meter: asyncio.Task[None] | None = None
        self.coordinator: Coordinator | None = None

    async def start(self) -> None:
        """Serve gRPC and HTTP; the cluster comes up in the background.

        Raises:
            StartupError: something is in the way; nothing is left running.
        """
        try:
            await self._start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError) and is_full_disk(error, self._data_dir):
                raise StartupError(why_unopenable(error, self._store_path)) from error
            raise

    async def _start(self) -> None:
        settings = self._settings
        listen, http = loopback_address("--listen", settings.listen), loopback_address("--http", settings.http)
        if self._keeps_cluster and not launcher_is_installed():
            raise StartupError("the workers are not installed here; run: pip install 'lockstep-train[workers]'")
        self._lock = lock_folder(self._data_dir)
        # A server that was killed left its addresses; nobody shall take them for ours.
        (self._data_dir / "server.json").unlink(missing_ok=True)
        is_embedded = settings.ray_address is None
        num_cpus, num_gpus = settings.num_cpus or available_cpus(), _gpus(settings)
        telemetry = Telemetry()
        self._http = HttpServer(http, telemetry.registry)
        self._store = _open_store(self._store_path, telemetry)
        orders = Orders(
            epoch=self._store.epoch,
            secret=_secret(self._data_dir),
            checkpoint_root=str(self._data_dir.absolute() / "checkpoints"),
        )
        self.node_token = orders.node_token()
        self._logs = LogStore(self._data_dir / "logs", settings.log_bytes_per_job)
        self.coordinator = Coordinator(
            self._store,
            site=Site(Path.cwd(), is_embedded, settings.points_per_job),
            cluster=Cluster(True, single_node(num_cpus, num_gpus), available_memory_bytes())
            if is_embedded
            else Cluster(False),
            telemetry=telemetry,
            orders=orders,
            keep_days=settings.keep_days,
            job_forgotten=self._logs.forget,
        )
        self._grpc = GrpcServer(self.coordinator, self._logs, telemetry, self.launcher_token)
        bound = self._grpc.bind(listen)
        self.grpc_address, self.http_address = str(bound), str(self._http.address)
        orders.reports_address = self._reports_address()
        await self._take_up_jobs()
        telemetry.registry.register(SnapshotCollector(Camera(self.coordinator, telemetry, asyncio.get_running_loop())))
        self._lag_meter = asyncio.create_task(measure_lag(telemetry), name="event loop lag")
        await self._grpc.start()
        self._http.start()
        self._write_addresses()
        log.info(
            "serving",
            grpc=self.grpc_address,
            http=self.http_address,
            data_dir=str(self._data_dir),
            epoch=self._store.epoch,
            pid=os.getpid(),
        )
        if self._keeps_cluster:
            dispatcher = self.coordinator.dispatcher
            head = RayHead(self._data_dir, num_cpus=num_cpus, num_gpus=num_gpus) if is_embedded else None
            self._keeper = ClusterKeeper(
                self._launcher_facts(),
                launcher_is_up=dispatcher.cluster_is_ready.is_set,
                launcher_words=lambda: dispatcher.launcher_words,
                launcher_timeout_s=settings.launcher_timeout_s,
                ray_address=settings.ray_address,
                head=head,
            )
            self._keeper.start()

    async def _take_up_jobs(self) -> None:
        assert self.coordinator is not None
        try:
            await self.coordinator.start()
        except DAMAGES as error:
            log.error("the store cannot be read", exc_info=True)
            raise StartupError(why_unopenable(error, self._store_path)) from error

    def _reports_address(self) -> str:
        return self._settings.advertise_address or self.grpc_address

    def _launcher_facts(self) -> LauncherFacts:
        assert self._store is not None
        settings = self._settings
        return LauncherFacts(
            coordinator_address=self.grpc_address,
            reports_address=self._reports_address(),
            launcher_token=self.launcher_token,
            epoch=self._store.epoch,
            namespace=f"lockstep-{self._store.instance_id}",
            log_format=settings.log_format,
            warm_ttl_s=settings.warm_ttl_s,
            warm_workers=settings.warm_workers,
            warm_memory_bytes=settings.warm_memory_bytes,
            data_cache_bytes=settings.data_cache_bytes,
            node_token=self.node_token,
            gpu_job_mapping_dir=str(settings.gpu_job_mapping_dir or ""),
        )

    def _write_addresses(self) -> None:
        addresses = {"pid": os.getpid(), "grpc_address": self.grpc_address, "http_address": self.http_address}
        write_atomically(self._data_dir / "server.json", json.dumps(addresses))

    async def stop(self) -> None:
        """Let workers keep what they have, take no more calls, end the cluster's processes, close the store."""
        if self._lag_meter is not None:
            self._lag_meter.cancel()
        if self._http is not None:
            self._http.fail_health()
        if self.coordinator is not None:
            await self.coordinator.drain()
            if self._logs is not None:
                self._logs.bells.close()
            await self.coordinator.stop()
        if self._grpc is not None:
            await self._grpc.stop(_CALLS_GRACE_S)
        if self._keeper is not None:
            await self._keeper.stop()
        if self._http is not None:
            await asyncio.to_thread(self._http.stop)
        if self._logs is not None:
            await asyncio.to_thread(self._logs.close)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        if self._lock is not None:
            (self._data_dir / "server.json").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """End the cluster's processes at once; for a second Ctrl-C."""
        if self._lock is not None:
            (self._data_dir / "server.json").unlink(missing_ok=True)
        if self._keeper is not None:
            self._keeper.kill()


async def measure_lag(telemetry: Telemetry) -> None:
    """Count how late the event loop calls back, for as long as it runs."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_MEASURED_EVERY_S
        await asyncio.sleep(_LAG_MEASURED_EVERY_S)
        telemetry.loop_lagged(loop.time() - due)


def _gpus(settings: Settings) -> int:
    return available_gpus() if settings.num_gpus is None else settings.num_gpus


def _open_store(path: Path, telemetry: Telemetry) -> Store:
    is_empty = not path.exists() or path.stat().st_size == 0
    if is_empty and (path.parent / "secret").exists():
        raise StartupError(
            f"{path} is {'empty' if path.exists() else 'missing'}, and beside it lies what an earlier server has left; "
            f"put a good copy in its place; to begin anew, without the jobs there were, remove {path.parent} or choose "
            "another --data-dir"
        )
    try:
        return Store(path, telemetry.committed)
    except StoreError as error:
        raise StartupError(str(error)) from error


def _secret(data_dir: Path) -> bytes:
    try:
        return read_secret(data_dir)
    except (OSError, ValueError) as error:
        raise StartupError(
            f"{data_dir / 'secret'} cannot be used: {error}; remove it, and jobs that are under way start again "
            "from their checkpoints"
        ) from error


def lock_folder(folder: Path) -> IO[str]:
    """Make the data folder and lock it; the lock lasts as long as the file is open, and so as this process.

    Raises:
        StartupError: it cannot be used, or another server has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "server.lock").open("a+")
    except FileExistsError as error:
        raise StartupError(f"--data-dir {folder} is no folder; choose another") from error
    except OSError as error:
        raise StartupError(f"--data-dir {folder} cannot be used: {error.strerror}; choose another") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise StartupError(
            f"--data-dir {folder} is in use by the server with pid {pid}; stop that one or choose another folder"
        ) from error
    try:
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError:
        with contextlib.suppress(OSError):  # closing writes again
            file.close()
        raise
    return file
