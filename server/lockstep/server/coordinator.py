"""The coordinator: turns what users, launcher and workers say into events, and decides who starts next."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from lockstep.server import scheduler
from lockstep.server.errors import ClusterTooSmall, InvalidRequest, InvalidSpec, NotFound, PermissionDenied
from lockstep.server.gangs import Entry, Gang, LauncherLine, held_by, nodes_of
from lockstep.server.job import (
    ENDED,
    Admitted,
    CancelAsked,
    CanNeverFit,
    GangGone,
    GangJoined,
    Job,
    Reported,
    State,
    WorkersForgotten,
)
from lockstep.server.live_jobs import LiveJobs
from lockstep.server.rules import Site, show
from lockstep.server.scheduler import Node, Placement
from lockstep.server.spec import ENGINE_VERSION, curve_digest, submit_digest
from lockstep.server.store import NewJob, Store, StoredPoint
from lockstep.server.telemetry import Telemetry
from lockstep.server.validation import resolve
from lockstep.server.watch import Bells
from lockstep.v1.internal_service_pb2 import ClusterCapacity
from lockstep.v1.job_pb2 import JobError
from lockstep.v1.job_spec_pb2 import JobSpec

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Cluster:
    """What is known of the cluster before it speaks.

    Attributes:
        is_fixed: it will never grow, so that what does not fit now never will.
        nodes: its nodes when they are known, to refuse what can never fit from the first submit on.
    """

    is_fixed: bool
    nodes: tuple[Node, ...] | None = None


@dataclass(frozen=True)
class Report:
    """What rank 0 said, checked and translated."""

    job_id: str
    attempt: int
    sequence: int
    token: str
    event: Reported
    points: Sequence[StoredPoint]


class Coordinator:
    """The live jobs, and everything that happens to them."""

    def __init__(self, store: Store, *, site: Site, cluster: Cluster, telemetry: Telemetry) -> None:
        self.store = store
        self.bells = Bells()
        self.cluster_is_ready = asyncio.Event()
        self._live = LiveJobs(store, self.bells, telemetry)
        self._site = site
        self._telemetry = telemetry
        self._is_fixed = cluster.is_fixed
        self._known_nodes = cluster.nodes
        self._nodes: tuple[Node, ...] | None = None
        self._capacity_is_new = False
        self._line: LauncherLine | None = None
        self._scheduling: asyncio.Task[None] | None = None
        self._closing = False

    # Life of the process.

    def set_reports_address(self, address: str) -> None:
        """Say where workers report to, host:port; known once the port is bound."""
        self._live.reports_address = address

    async def start(self) -> None:
        """Take up what the store knows; jobs whose workers an earlier process looked after start again."""
        self._telemetry.set_counts(await self.store.count_by_state())
        for job in await self.store.live_jobs():
            entry = self._live.add(job)
            if job.state is not State.QUEUED:
                await self._live.apply(entry, WorkersForgotten("the server was restarted"))
        self._scheduling = asyncio.create_task(self._keep_scheduling(), name="scheduler")

    async def stop(self) -> None:
        """End the streams and stop scheduling; jobs stay as they are stored."""
        self._closing = True
        self.bells.close()
        if self._line is not None:
            self._line.end()
        if self._scheduling is not None:
            self._scheduling.cancel()
            await asyncio.gather(self._scheduling, return_exceptions=True)
        await self._live.close()

    # What users ask for.

    async def submit(self, submitted: JobSpec, *, principal: str, request_id: str, validate_only: bool) -> Job:
        """Check, store and queue a job.

        Returns:
            The job; without a job_id when it was only checked.

        Raises:
            InvalidSpec: the spec breaks rules.
            ClusterTooSmall: the cluster can never run it.
            AlreadyExists: the request_id stands for another spec.
        """
        digest = submit_digest(submitted)
        try:
            job = await self._new_job(submitted)
        except (InvalidSpec, ClusterTooSmall):
            # A repeated call is answered as the first one was, even when files or nodes have gone since.
            earlier = await self.store.find_request(principal, request_id, digest) if request_id else None
            if earlier is None or validate_only:
                raise
            return await self.get(earlier.job_id)
        if validate_only:
            return replace(job, job_id="", state_reason="checked only; nothing is stored")
        return await self._live.finish(self._store_new(NewJob(job, principal, request_id, digest)))

    async def _new_job(self, submitted: JobSpec) -> Job:
        if submitted.data.HasField("idx"):
            # Looks at files, which can take long on a network disk.
            spec = await asyncio.to_thread(resolve, submitted, self._site)
        else:
            spec = resolve(submitted, self._site)
        if (nodes := self._nodes or self._known_nodes) is not None:
            why = scheduler.why_it_never_fits(spec.resources, nodes)
            if why is not None:
                raise ClusterTooSmall(why)
        return Job(
            job_id=f"job-{secrets.token_hex(6)}",
            number=0,
            spec=spec,
            state=State.QUEUED,
            state_reason="waits for resources",
            create_time=datetime.now(UTC),
            engine_version=ENGINE_VERSION,
            curve_digest=curve_digest(spec),
        )

    async def _store_new(self, new: NewJob) -> Job:
        job, is_new = await self.store.submit(new)
        if not is_new:
            return await self.get(job.job_id)
        self._telemetry.job_submitted()
        self._live.add(job)
        log.info("job submitted", job_id=job.job_id, name=job.spec.name, workers=job.spec.resources.workers)
        return job

    async def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            NotFound: there is no such job.
        """
        entry = self._live.entries.get(job_id)
        job = entry.job if entry is not None else await self.store.get_job(job_id)
        if job is None:
            raise NotFound(f"there is no job {show(job_id)}; list the jobs to see those there are")
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop.

        Raises:
            NotFound: there is no such job.
            JobHasEnded: it ended before.
        """
        entry = self._live.entries.get(job_id) or Entry(await self.get(job_id))
        return await self._live.finish(self._live.locked_apply(entry, CancelAsked()))

    # What the launcher and the workers say.

    def launcher_connected(self) -> LauncherLine:
        """Open a line to the launcher; it replaces the one before."""
        if self._line is not None:
            self._line.end()
        self._line = LauncherLine()
        return self._line

    async def launcher_ready(self, line: LauncherLine, epoch: int) -> None:
        """Take the launcher into service; nothing of an earlier one is left.

        Raises:
            PermissionDenied: it was started by another coordinator.
        """
        if epoch != self.store.epoch:
            raise PermissionDenied(f"the launcher belongs to epoch {epoch}; this is epoch {self.store.epoch}")
        if line is not self._line:
            return
        await self._live.finish(self._forget_workers("the launcher was restarted"))
        line.is_ready = True
        self._live.has_changed.set()

    async def launcher_disconnected(self, line: LauncherLine) -> None:
        """Give up the gangs of a launcher that is gone; the next one ends what is left of them."""
        if line is not self._line or self._closing:
            return
        self._line = None
        self._nodes = None
        self.cluster_is_ready.clear()
        log.warning("the launcher is gone")
        await self._live.finish(self._forget_workers("the launcher was lost"))

    async def _forget_workers(self, cause: str) -> None:
        for entry in [
            entry for entry in self._live.entries.values() if entry.job.state is not State.QUEUED or entry.gang
        ]:
            async with entry.lock:
                self._live.set_gang(entry, None)
                if entry.job.state not in ENDED | {State.QUEUED}:
                    await self._live.apply(entry, WorkersForgotten(cause))
                self._live.drop_if_over(entry)
        self._live.has_changed.set()

    def capacity_changed(self, line: LauncherLine, capacity: ClusterCapacity) -> None:
        """Learn what the cluster has."""
        if line is not self._line:
            return
        self._nodes = nodes_of(capacity)
        self._capacity_is_new = True
        log.info(
            "cluster capacity",
            nodes=len(self._nodes),
            cpus=sum(node.usable.cpu for node in self._nodes) / scheduler.UNITS,
            gpus=sum(node.usable.gpu for node in self._nodes) / scheduler.UNITS,
        )
        self._live.has_changed.set()

    async def gang_started(self, job_id: str, attempt: int) -> None:
        """Note that all workers of an attempt are up."""
        entry = self._live.entries.get(job_id)
        if entry is not None and entry.gang is not None and entry.gang.attempt == attempt:
            await self._live.finish(self._live.locked_apply(entry, GangJoined(), attempt))

    async def gang_stopped(self, job_id: str, attempt: int, error: JobError | None) -> None:
        """Free what an attempt held, and let the job go on from there."""
        entry = self._live.entries.get(job_id)
        if entry is None or entry.gang is None or entry.gang.attempt != attempt:
            log.warning("an unknown gang has stopped", job_id=job_id, attempt=attempt)
            return
        await self._live.finish(self._release(entry, attempt, error))

    async def _release(self, entry: Entry, attempt: int, error: JobError | None) -> None:
        async with entry.lock:
            if entry.gang is None or entry.gang.attempt != attempt:
                return
            # A gang that is gone holds nothing, and the attempt's token ends with it.
            self._live.set_gang(entry, None)
            await self._live.apply(entry, GangGone(error))
            self._live.drop_if_over(entry)
        self._live.has_changed.set()

    async def report(self, report: Report) -> int:
        """Store a report of the current attempt.

        Returns:
            The highest sequence number that is stored.

        Raises:
            PermissionDenied: the attempt is over.
            InvalidRequest: the report's number is not the next one.
        """
        entry = self._live.entries.get(report.job_id)
        if entry is None:
            raise PermissionDenied(f"job {report.job_id[:80]!r} has no attempt that is under way")
        return await self._live.finish(self._take_report(entry, report))

    async def _take_report(self, entry: Entry, report: Report) -> int:
        async with entry.lock:
            gang = entry.gang
            if (
                gang is None
                or gang.attempt != report.attempt
                or not secrets.compare_digest(gang.token.encode(), report.token.encode())
            ):
                raise PermissionDenied(f"attempt {report.attempt} of job {report.job_id[:80]!r} is over; stop")
            if report.sequence <= gang.sequence:
                return gang.sequence
            if entry.job.state.has_ended:
                raise PermissionDenied(f"job {report.job_id} has ended; stop")
            if report.sequence > gang.sequence + 1:
                raise InvalidRequest.of("sequence", f"is {report.sequence}; the next report is {gang.sequence + 1}")
            await self._live.apply(entry, report.event, report.points)
            gang.sequence = report.sequence
            return gang.sequence

    # Who starts next.

    async def _keep_scheduling(self) -> None:
        while True:
            await self._live.has_changed.wait()
            self._live.has_changed.clear()
            try:
                await self._live.finish(self._schedule())
            except Exception:
                log.exception("scheduling failed")

    async def _schedule(self) -> None:
        line, nodes = self._line, self._nodes
        if line is None or not line.is_ready or nodes is None:
            return
        self._announce_cluster()
        if self._is_fixed and self._capacity_is_new:
            self._capacity_is_new = False
            await self._fail_what_never_fits(nodes)
        for placement in scheduler.plan(self._live.waiting(), nodes, held_by(self._live.holding.values())):
            await self._admit(placement, line)

    def _announce_cluster(self) -> None:
        if not self.cluster_is_ready.is_set():
            log.info("cluster ready", epoch=self.store.epoch)
            self.cluster_is_ready.set()

    async def _admit(self, placement: Placement, line: LauncherLine) -> None:
        entry = self._live.entries.get(placement.job_id)
        if entry is None:
            return
        async with entry.lock:
            # Since the plan was made the job may have been cancelled or the launcher lost.
            if entry.job.state is not State.QUEUED or line is not self._line:
                return
            each = scheduler.amount_of_worker(entry.job.spec.resources)
            self._live.set_gang(entry, Gang(entry.job.attempt + 1, placement.node_ids, each, line))
            try:
                await self._live.apply(entry, Admitted(placement.node_ids))
            except Exception:
                self._live.set_gang(entry, None)
                raise

    async def _fail_what_never_fits(self, nodes: tuple[Node, ...]) -> None:
        for entry in list(self._live.entries.values()):
            why = scheduler.why_it_never_fits(entry.job.spec.resources, nodes)
            if why is None or entry.job.state is not State.QUEUED:
                continue
            async with entry.lock:
                if entry.job.state is State.QUEUED:
                    await self._live.apply(entry, CanNeverFit(why))

    def counts(self) -> Mapping[str, int]:
        """Count what is held in memory: for tests and for a look from outside."""
        return {"entries": len(self._live.entries), "holding": len(self._live.holding)}
