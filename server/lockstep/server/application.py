"""The coordinator's parts, put together: what starts and stops with a server, in which order."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from lockstep.server import data_folder
from lockstep.server.cluster.keeper import ClusterKeeper
from lockstep.server.cluster.launcher_process import launcher_is_installed
from lockstep.server.cluster.ray_head import RayHead
from lockstep.server.coordinator.dispatcher import Cluster, Dispatcher
from lockstep.server.coordinator.orders import Orders, read_secret
from lockstep.server.coordinator.parts import Parts, assemble
from lockstep.server.health import DEADLINE_S, Health
from lockstep.server.http import HttpServer
from lockstep.server.logs.store import LogStore
from lockstep.server.process import open_files
from lockstep.server.process.background import keep_running
from lockstep.server.process.cpus import available_cpus
from lockstep.server.process.private_files import closed_to_others, write_atomically
from lockstep.server.process.timeouts import done_within
from lockstep.server.rpc.server import GrpcServer
from lockstep.server.scheduling.capacity import single_node
from lockstep.server.settings import (
    Settings,
    StartupError,
    available_gpus,
    available_memory_bytes,
    loopback_address,
)
from lockstep.server.spec.rules import Site
from lockstep.server.store import DAMAGES, Store, StoreError, is_full_disk, why_unopenable
from lockstep.server.telemetry import Telemetry
from lockstep.server.telemetry.collector import SnapshotCollector
from lockstep.server.telemetry.snapshot import Camera
from lockstep.v1.launcher_pb2 import LauncherSettings

_CALLS_GRACE_S = 5.0
# How long the disk may take with what is left, and once more to close all files.
_DISK_GRACE_S = 10.0
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
        self._is_embedded = settings.ray_address is None
        self._lock: IO[str] | None = None
        self._closing = threading.Lock()
        self._http: HttpServer | None = None
        self._store: Store | None = None
        self._logs: LogStore | None = None
        self._grpc: GrpcServer | None = None
        self._keeper: ClusterKeeper | None = None
        self._health: Health | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watches: list[asyncio.Task[None]] = []
        self.parts: Parts | None = None

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
        if listen.port and listen == http:
            raise StartupError(f"--listen and --http are the same, {listen}; give each a port of its own")
        if self._keeps_cluster and not launcher_is_installed():
            raise StartupError(
                "the workers are not installed here; run: pip install '.[workers]' in a checkout of Lockstep"
            )
        self._lock = data_folder.take(self._data_dir, ports=(("--listen", listen), ("--http", http)))
        limit = open_files.raise_limit()
        here = settings.num_cpus or available_cpus(), _gpus(settings)
        telemetry = Telemetry()
        self._http = HttpServer(http, telemetry.registry, self._why_unwell)
        self._store = _open_store(self._store_path, telemetry)
        orders = self._make_orders(self._store)
        self.node_token = orders.node_token()
        self._logs = LogStore(self._data_dir / "logs", settings.log_bytes_per_job)
        self.parts = self._assemble(self._store, self._logs, orders, telemetry, here)
        self._health, self._loop = Health(self._store), asyncio.get_running_loop()
        self._grpc = GrpcServer(
            self.parts,
            self._logs,
            telemetry,
            self._health,
            self.launcher_token,
            open_files.most_connections(limit),
        )
        bound = self._grpc.bind(listen)
        self.grpc_address, self.http_address = str(bound), str(self._http.address)
        orders.reports_address = self._reports_address()
        if self.grpc_address != Settings.model_fields["listen"].default:
            self.parts.dispatcher.submit_with = f"lockstep --target {self.grpc_address} submit -f SPEC"
        with self._naming_damages():
            await self.parts.coordinator.start()
            if settings.keep_days is not None:
                await self._logs.forget_all_but(self._store.jobs.known)
        telemetry.registry.register(SnapshotCollector(Camera(self.parts, telemetry, asyncio.get_running_loop())))
        self._watches = [
            keep_running(measure_lag(telemetry), name="event loop lag"),
            keep_running(open_files.watch(limit), name="open files"),
        ]
        await self._grpc.start()
        self._http.start()
        self._write_addresses()
        log.info(
            "serving",
            grpc=self.grpc_address,
            http=self.http_address,
            data_dir=str(self._data_dir),
            epoch=self._store.cluster.epoch,
            pid=os.getpid(),
        )
        if self._keeps_cluster:
            self._keeper = self._make_keeper(self.parts.dispatcher, here)
            self._keeper.start()

    def _make_orders(self, store: Store) -> Orders:
        """What orders to the launcher need, and the checkpoints where the data folder is now."""
        checkpoint_root = str(self._data_dir.absolute() / "checkpoints")
        with self._naming_damages():
            moved_from = store.cluster.follow_checkpoint_root(checkpoint_root)
        if moved_from:
            log.info("the data folder was moved, or is a copy", before=moved_from, now=checkpoint_root)
        return Orders(epoch=store.cluster.epoch, secret=_secret(self._data_dir), checkpoint_root=checkpoint_root)

    def _assemble(
        self, store: Store, logs: LogStore, orders: Orders, telemetry: Telemetry, here: tuple[int, int]
    ) -> Parts:
        """What works together in this server; `here` are the CPUs and GPUs of this machine."""
        settings, cluster = self._settings, Cluster(False)
        if self._is_embedded:
            cluster = Cluster(True, single_node(*here), available_memory_bytes())
        roots = _checkpoint_roots(settings, orders.checkpoint_root)
        return assemble(
            store,
            site=Site(Path.cwd(), self._is_embedded, roots, settings.points_per_job),
            cluster=cluster,
            listener=telemetry,
            orders=orders,
            keep_days=settings.keep_days,
            job_forgotten=logs.forget,
        )

    def _make_keeper(self, dispatcher: Dispatcher, here: tuple[int, int]) -> ClusterKeeper:
        settings, (num_cpus, num_gpus) = self._settings, here
        head = RayHead(self._data_dir, num_cpus=num_cpus, num_gpus=num_gpus) if self._is_embedded else None
        return ClusterKeeper(
            self._launcher_settings(),
            launcher_is_up=dispatcher.cluster_is_ready.is_set,
            launcher_words=lambda: dispatcher.launcher_words,
            launcher_timeout_s=settings.launcher_timeout_s,
            folder=self._data_dir,
            ray_address=settings.ray_address,
            head=head,
            told=partial(setattr, dispatcher, "trouble"),
        )

    @contextmanager
    def _naming_damages(self) -> Iterator[None]:
        try:
            yield
        except DAMAGES as error:
            log.error("the store cannot be used", exc_info=True)
            raise StartupError(why_unopenable(error, self._store_path)) from error

    def _reports_address(self) -> str:
        return self._settings.advertise_address or self.grpc_address

    def _launcher_settings(self) -> LauncherSettings:
        assert self._store is not None
        return LauncherSettings(
            coordinator_address=self.grpc_address,
            reports_address=self._reports_address(),
            launcher_token=self.launcher_token,
            node_token=self.node_token,
            epoch=self._store.cluster.epoch,
            namespace=f"lockstep-{self._store.cluster.instance_id}-{data_folder.identity(self._data_dir)}",
            options=self._settings.launcher_options(),
        )

    def _why_unwell(self) -> str:
        """Say what is wrong with this server, from a thread of the HTTP port."""
        assert self._health is not None
        assert self._loop is not None
        asking = asyncio.run_coroutine_threadsafe(self._health.why_unwell(), self._loop)
        try:
            return asking.result(2 * DEADLINE_S)
        except TimeoutError:
            asking.cancel()
            return "the server is busy"

    def _write_addresses(self) -> None:
        addresses = {"pid": os.getpid(), "grpc_address": self.grpc_address, "http_address": self.http_address}
        write_atomically(self._data_dir / "server.json", json.dumps(addresses))

    async def stop(self) -> bool:
        """Let workers keep what they have, take no more calls, end the cluster's processes, close the store.

        Returns:
            Whether all has ended. Otherwise the disk hangs: threads are left that wait for it, and the data folder
            stays locked until this process ends, for which it must not wait for them.
        """
        all_is_stored = True
        for watch in self._watches:
            watch.cancel()
        if self._http is not None:
            self._http.fail_health()
        if self.parts is not None:
            await self.parts.coordinator.drain()
            # Calls have gone on until here. What hangs by then is left to itself.
            closing = asyncio.get_running_loop().call_later(_CALLS_GRACE_S, self.parts.files.close)
            if self._logs is not None:
                self._logs.notifier.close()
            all_is_stored = await done_within(self.parts.coordinator.stop(), _DISK_GRACE_S)
        if self._grpc is not None:
            await self._grpc.stop(_CALLS_GRACE_S)
        if self.parts is not None:
            closing.cancel()
            self.parts.files.close()
        if self._keeper is not None:
            await self._keeper.stop()
        has_ended = await done_within(asyncio.to_thread(self._close), _DISK_GRACE_S) and all_is_stored
        if not has_ended:
            log.error(
                "the disk of the data folder hangs; what was not acknowledged is lost", data_dir=str(self._data_dir)
            )
        return has_ended

    def _close(self) -> None:
        with self._closing:  # an end that a hung disk has held up may still go on when the next one begins
            if self._http is not None:
                self._http.stop()
            if self._logs is not None:
                self._logs.close()
            if self._store is not None:
                self._store.close()
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


def _checkpoint_roots(settings: Settings, own: str) -> tuple[str, ...]:
    return (*settings.checkpoint_roots, own) if settings.checkpoint_roots else ()


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
        with closed_to_others():
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
