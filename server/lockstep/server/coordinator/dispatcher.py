"""Who starts, grows and shrinks: the connection to the launcher, what it tells of gangs, and what follows from that."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import count
from lockstep.server.coordinator.gangs import Entry, Gang, claims_of
from lockstep.server.coordinator.inventory import take_over
from lockstep.server.coordinator.launcher_connection import LauncherConnection
from lockstep.server.coordinator.live_jobs import LiveJobs
from lockstep.server.coordinator.orders import Orders
from lockstep.server.errors import PermissionDenied, StoreUnwritable
from lockstep.server.jobs.job import (
    Admitted,
    CanNeverFit,
    GangGone,
    GangJoined,
    State,
    Stop,
    WorkersChanged,
    WorkersForgotten,
)
from lockstep.server.jobs.lifecycle import CANCEL_GRACE_S
from lockstep.server.process.background import keep_running
from lockstep.server.process.timeouts import done_within
from lockstep.server.scheduling import scheduler
from lockstep.server.scheduling.capacity import nodes_of, usable_on, warm_on
from lockstep.server.scheduling.scheduler import Node, Placement, Resize
from lockstep.server.store import JobStore
from lockstep.v1.internal_service_pb2 import (
    ClusterCapacity,
    GangChanged,
    GangStopped,
    WorkerProcess,
    WorkerProcesses,
)
from lockstep.v1.job_spec_pb2 import ResourcesSpec

SHUTDOWN_GRACE_S = 20.0
# What the launcher may take beyond that to kill who did not leave, and to say so.
_SHUTDOWN_MARGIN_S = 5.0
_RETRY_S = 1.0
WORKER_BYTES = 350 << 20
"""What a worker takes that has read nothing yet."""

_AFTER_NODE = re.compile(r"(?<=\bnode )[\w-]+")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Cluster:
    """What is known of the cluster before it speaks.

    Attributes:
        is_fixed: it will never grow, so that what does not fit now never will.
        nodes: its nodes when they are known, to refuse what can never fit from the first submit on.
        memory_bytes: of all nodes, when it is known.
    """

    is_fixed: bool
    nodes: tuple[Node, ...] | None = None
    memory_bytes: int | None = None


class Dispatcher:
    """Brings jobs and cluster together.

    Attributes:
        cluster_is_ready: set while a launcher is in service and has told what the cluster has.
        launcher_words: how often a launcher has said something.
        processes: the worker processes that there are; none while no launcher is in service.
        nodes_seen: the nodes that a launcher told of last, also while none is in service.
        trouble: what stands in the way of the cluster while no launcher is in service, in words; may be empty.
        node_names: what people call each node that was ever there, by node_id.
        submit_with: the command that reaches this server.
    """

    def __init__(self, live: LiveJobs, orders: Orders, stored: JobStore, epoch: int, cluster: Cluster) -> None:
        self.cluster_is_ready = asyncio.Event()
        self.launcher_words = 0
        self.processes: tuple[WorkerProcess, ...] = ()
        self.nodes_seen: tuple[Node, ...] = ()
        self.trouble = ""
        self.node_names: dict[str, str] = {}
        self.submit_with = "lockstep submit -f SPEC"
        self._live = live
        self._orders = orders
        self._stored, self._epoch = stored, epoch
        self._is_fixed, self._known_nodes = cluster.is_fixed, cluster.nodes
        self._memory_bytes = cluster.memory_bytes
        self._nodes: tuple[Node, ...] | None = None
        self._had_launcher = False
        self._is_closing = False
        self._planning = asyncio.Lock()
        self._scheduling: asyncio.Task[None] | None = None

    # Life of the process.

    def start(self) -> None:
        """Begin to schedule; returns at once."""
        self._scheduling = keep_running(self._keep_scheduling(), name="scheduler")

    async def drain(self) -> None:
        """Start nothing more, and have every gang write a checkpoint and leave; without a launcher nothing is done."""
        self._is_closing = True
        connection = self._orders.connection
        self._orders.drain()
        if connection is None or not connection.is_ready or not self._live.holding:
            return
        log.info("the gangs write checkpoints and leave", gangs=len(self._live.holding), grace_s=SHUTDOWN_GRACE_S)
        if not await done_within(self._gangs_have_left(connection), SHUTDOWN_GRACE_S + _SHUTDOWN_MARGIN_S):
            log.warning("some gangs have not left", gangs=len(self._live.holding))

    async def _tell_to_leave(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.gang is not None:
                keeps = entry.job.state.has_workers and entry.job.state is not State.CANCELLING
                stop = Stop(SHUTDOWN_GRACE_S if keeps else CANCEL_GRACE_S, keep=keeps)
                self._orders.stop(entry.job.job_id, entry.gang.attempt, stop)

    async def _gangs_have_left(self, connection: LauncherConnection) -> None:
        # All at once: a job's lock is held while it is stored, which takes for ever where the disk hangs.
        await asyncio.gather(*(self._tell_to_leave(entry) for entry in self._live.entries.values()))
        while self._live.holding and connection is self._orders.connection:
            self._live.gang_has_left.clear()
            await self._live.gang_has_left.wait()

    async def stop(self) -> None:
        """End the connection and stop scheduling; jobs stay as they are stored."""
        self._is_closing = True
        if self._orders.connection is not None:
            self._orders.connection.end()
        if self._scheduling is not None:
            self._scheduling.cancel()
            await asyncio.gather(self._scheduling, return_exceptions=True)

    # The connection to the launcher.

    def launcher_connected(self) -> LauncherConnection:
        """Open a connection to the launcher; it replaces the one before."""
        if self._orders.connection is not None:
            self._orders.connection.end()
        self._lose_line()
        self._orders.connection = LauncherConnection()
        return self._orders.connection

    async def launcher_ready(self, connection: LauncherConnection, epoch: int, gangs: Sequence[GangChanged]) -> None:
        """Take the launcher into service, with the gangs that an earlier one has left.

        Raises:
            PermissionDenied: it was started by another coordinator.
        """
        if epoch != self._epoch:
            raise PermissionDenied(f"the launcher belongs to epoch {epoch}; this is epoch {self._epoch}")
        await self._live.finish(self._take_into_service(connection, gangs))

    async def _take_into_service(self, connection: LauncherConnection, gangs: Sequence[GangChanged]) -> None:
        # Not while a plan is carried out: its orders are for the launcher before, who has not told of what they made.
        async with self._planning:
            if connection is not self._orders.connection:
                return
            who = "launcher" if self._had_launcher else "server"
            connection.is_ready = self._had_launcher = True
            cause = f"the workers were gone when the {who} came back"
            await take_over(gangs, self._workers_changed, self._live, self._orders, self._stored, cause)
        self._live.has_changed.set()

    def launcher_spoke(self, connection: LauncherConnection) -> None:
        """Count a sign of life of the launcher."""
        if connection is self._orders.connection:
            self.launcher_words += 1

    def launcher_disconnected(self, connection: LauncherConnection) -> None:
        """Note that the launcher is gone. Its gangs go on; the next launcher tells what has become of them."""
        if connection is self._orders.connection:
            self._lose_line()
            if not self._is_closing:  # else it was told to leave
                log.warning("the launcher is gone")

    def _lose_line(self) -> None:
        self._orders.connection = None
        self._nodes = None
        self.processes = ()
        self.cluster_is_ready.clear()
        self._live.gang_has_left.set()  # Who waits for that has nobody to wait for.

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher is in service."""
        connection = self._orders.connection
        return connection is not None and connection.is_ready

    def why_not_ready(self) -> str:
        """Say why no job can start now, for people; empty when jobs can."""
        if self.cluster_is_ready.is_set():
            return ""
        if self.trouble:
            return self.trouble
        if self._had_launcher:
            return "the launcher is gone and is being replaced; jobs that run go on, others wait until it is in service"
        return "no launcher is in service yet; jobs wait until the cluster is up"

    def capacity_changed(self, connection: LauncherConnection, capacity: ClusterCapacity) -> None:
        """Learn what the cluster has."""
        if connection is not self._orders.connection:
            return
        seen = self._nodes
        self._nodes = self.nodes_seen = nodes_of(capacity)
        self.node_names |= {node.node_id: node.name for node in self._nodes}
        if seen is None or Counter(node.total for node in seen) != Counter(node.total for node in self._nodes):
            self._live.unchecked.add_all()
        cpus, gpus = usable_on(self._nodes)
        log.info("cluster capacity", nodes=len(self._nodes), cpus=cpus, gpus=gpus)
        self._live.has_changed.set()

    def processes_changed(self, connection: LauncherConnection, told: WorkerProcesses) -> None:
        """Learn which worker processes there are."""
        if connection is self._orders.connection:
            self.processes = tuple(told.processes)

    # What the launcher says of a gang.

    def _find(self, connection: LauncherConnection, job_id: str, attempt: int) -> tuple[Entry, Gang] | None:
        """Find a gang that belongs to a job; None also for what a launcher says that is no longer ours."""
        entry = self._live.entries.get(job_id) if connection is self._orders.connection else None
        if entry is None or entry.gang is None or entry.gang.attempt != attempt:
            return None
        return entry, entry.gang

    async def gang_started(self, connection: LauncherConnection, job_id: str, attempt: int) -> None:
        """Note that all workers of an attempt are up."""
        found = self._find(connection, job_id, attempt)
        if found is not None:
            entry, gang = found
            await self._live.finish(self._live.locked_apply(entry, GangJoined(len(gang.node_ids)), attempt))

    async def gang_changed(self, connection: LauncherConnection, told: GangChanged) -> None:
        """Note who is in a gang now; of what is older than the newest order only the words count."""
        found = self._find(connection, told.job_id, told.attempt)
        if found is None:
            log.warning("an unknown gang has changed", job_id=told.job_id, attempt=told.attempt)
            return
        entry, gang = found
        gang.refused.update(told.refused_node_ids)
        if told.revision >= gang.revision:
            gang.revision = told.revision
            delay_s = gang.has_become(tuple(told.node_ids), told.running_workers)
            if delay_s is not None:
                self._live.delay_resize(gang, delay_s)
        await self._live.finish(self._live.locked_apply(entry, self._workers_changed(told), told.attempt))
        self._live.has_changed.set()

    def _workers_changed(self, told: GangChanged) -> WorkersChanged:
        return WorkersChanged(told.running_workers, self._for_people(told.message), told.refuses_stop)

    def _for_people(self, words: str) -> str:
        """What the launcher says, with the names of nodes, of which it knows only Ray's ids."""
        return _AFTER_NODE.sub(lambda found: self.node_names.get(found[0], found[0]), words)

    async def gang_stopped(self, connection: LauncherConnection, told: GangStopped) -> None:
        """Free what an attempt held, and let the job go on from there."""
        if connection is not self._orders.connection:
            return
        found = self._find(connection, told.job_id, told.attempt)
        if found is not None:
            await self._live.finish(self._release(found[0], told))
        elif not self._live.release(told.job_id, told.attempt):
            log.warning("an unknown gang has stopped", job_id=told.job_id, attempt=told.attempt)

    async def _release(self, entry: Entry, told: GangStopped) -> None:
        error = told.error if told.HasField("error") else None
        if error is not None:
            error.message = self._for_people(error.message)
        async with entry.lock:
            if entry.gang is None or entry.gang.attempt != told.attempt:
                return
            left_for_us = self._is_closing and (error is None or error.reason == FailureReason.WORKER_LOST)
            if left_for_us and entry.job.state.has_workers:
                await self._live.apply(entry, WorkersForgotten("the server was stopped"))
            else:
                await self._live.apply(entry, GangGone(error, told.is_too_small))
            # Only now that this is stored: until then the job counts as having its workers.
            self._live.set_gang(entry, None)
            self._live.drop_if_over(entry)

    # Who starts, grows and shrinks.

    def look_again(self, job_id: str) -> None:
        """Schedule, and see whether a job whose wishes have changed can ever fit."""
        self._live.unchecked.add(job_id)
        self._live.has_changed.set()

    def why_it_never_fits(self, resources: ResourcesSpec) -> str | None:
        """Say why the cluster can never run a job, as far as it is known; None when it can."""
        nodes = self._nodes or self._known_nodes
        if nodes is None:
            return None
        return scheduler.why_it_never_fits(resources, nodes)

    def why_no_memory(self, workers: int) -> str | None:
        """Say why the cluster has no memory for so many workers of one job, as far as it is known; None when it has."""
        if self._memory_bytes is None or workers * WORKER_BYTES <= self._memory_bytes:
            return None
        needed, there = (f"{size / 2**30:,.1f} GiB" for size in (workers * WORKER_BYTES, self._memory_bytes))
        most = max(1, self._memory_bytes // WORKER_BYTES)
        return (
            f"{workers:,} workers take at least {needed} of memory, and the cluster has {there}; "
            f"allowed: at most {most:,} workers"
        )

    async def _keep_scheduling(self) -> None:
        while True:
            await self._live.has_changed.wait()
            self._live.has_changed.clear()
            try:
                await self._live.finish(self._schedule())
            except StoreUnwritable:  # The store says so in the log; until it can be written nobody starts.
                await self._look_again_later()
            except Exception:
                log.exception("scheduling failed; tried again in a while")
                await self._look_again_later()

    async def _look_again_later(self) -> None:
        # Not by a timer: what has failed gives back what it took, and so asks for another look at once.
        await asyncio.sleep(_RETRY_S)
        self._live.has_changed.set()

    async def _schedule(self) -> None:
        async with self._planning:
            connection, nodes = self._orders.connection, self._nodes
            if connection is not None and connection.is_ready and nodes is not None and not self._is_closing:
                await self._carry_out_plan(connection, nodes)

    async def _carry_out_plan(self, connection: LauncherConnection, nodes: tuple[Node, ...]) -> None:
        if not self.cluster_is_ready.is_set():
            log.info(f"the cluster is ready: {_all_of(nodes)}; submit jobs with: {self.submit_with}")
            self.cluster_is_ready.set()
            self.trouble = ""
        if self._is_fixed and nodes:  # without any the cluster is broken, not too small
            await self._fail_what_never_fits(nodes)
        running = [entry.running(entry.gang) for entry in self._live.resizable() if entry.gang is not None]
        held, shares = claims_of(self._live.holding, self.processes)
        plan = scheduler.plan(self._live.waiting(), running, nodes, held, warm_on(self.processes), shares)
        self._live.waits_for_room = plan.waits_for_room
        for resize in plan.resizes:  # At once: the gangs are as the plan has seen them.
            self._resize(resize)
        for placement in plan.placements:
            await self._admit(placement, connection)

    def _resize(self, resize: Resize) -> None:
        gang = self._live.entries[resize.job_id].gang
        assert gang is not None, "the plan was made of what is here"
        gang.resize(resize.node_ids)
        self._orders.resize(resize.job_id, gang)
        log.info("gang resized", job_id=resize.job_id, workers=len(resize.node_ids), revision=gang.revision)

    async def _admit(self, placement: Placement, connection: LauncherConnection) -> None:
        entry = self._live.entries.get(placement.job_id)
        if entry is None:
            return
        async with entry.lock:
            # Since the plan was made the job may have been cancelled, the launcher lost or the server told to stop.
            if entry.job.state is not State.QUEUED or connection is not self._orders.connection or self._is_closing:
                return
            each = scheduler.amount_of_worker(entry.job.spec.resources)
            self._live.set_gang(entry, Gang(entry.job.attempt + 1, placement.node_ids, each))
            try:
                await self._live.apply(entry, Admitted(placement.node_ids))
            except Exception:
                self._live.set_gang(entry, None)
                raise

    async def _fail_what_never_fits(self, nodes: tuple[Node, ...]) -> None:
        try:
            async for entry, why in self._live.unchecked.take_what_never_fits(self._live.entries, nodes):
                async with entry.lock:
                    if entry.job.state is State.QUEUED:
                        await self._live.apply(entry, CanNeverFit(why))
        except StoreUnwritable:
            self._live.unchecked.add_all()  # those that were not looked at any more among them
            raise


def _all_of(nodes: tuple[Node, ...]) -> str:
    """What a cluster has, such as "2 CPUs and 1 GPU"."""
    cpus, gpus = usable_on(nodes)
    return count(cpus, "CPU") + (f" and {count(gpus, 'GPU')}" if gpus else "")
