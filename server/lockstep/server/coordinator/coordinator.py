"""The coordinator: what users ask of jobs, and what workers report, turned into events."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from lockstep.contract.spec.values import show
from lockstep.server.checkpoints.init_from import forget_beside, forget_what_is_over, keep_beside
from lockstep.server.cluster import view
from lockstep.server.cluster.view import ClusterView
from lockstep.server.coordinator.dispatcher import Dispatcher
from lockstep.server.coordinator.gangs import Entry, held_by
from lockstep.server.coordinator.listener import KEPT_S, JobListener
from lockstep.server.coordinator.live_jobs import LiveJobs
from lockstep.server.coordinator.new_jobs import make_job
from lockstep.server.coordinator.orders import Orders
from lockstep.server.coordinator.retention import Retention
from lockstep.server.errors import ClusterTooSmall, InvalidRequest, InvalidSpec, NotFound, PermissionDenied
from lockstep.server.jobs.job import CancelAsked, Event, Job, PauseAsked, ResumeAsked, Scaled, State
from lockstep.server.jobs.reports import Report
from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.process.background import keep_running
from lockstep.server.process.file_pool import FilePool
from lockstep.server.spec.digests import submit_digest
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import fill_in_defaults
from lockstep.server.store import NewJob, Store
from lockstep.server.watching.notifier import Notifier
from lockstep.server.watching.shared_reads import SharedReads
from lockstep.v1.job_spec_pb2 import JobSpec

_TIDY_EVERY_S = 60.0
_JOB_BYTES = 2_000
"""What a job takes in memory besides its spec."""

log = structlog.get_logger(__name__)


class Coordinator:
    """The live jobs, and everything that happens to them. Its parts are put together by `assemble`."""

    def __init__(
        self,
        store: Store,
        live: LiveJobs,
        dispatcher: Dispatcher,
        ledgers: JobLedgers,
        files: FilePool,
        notifier: Notifier,
        site: Site,
        listener: JobListener,
        orders: Orders,
        keep_days: float | None,
        job_forgotten: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._live = live
        self._dispatcher = dispatcher
        self._ledgers = ledgers
        self._files = files
        self._notifier = notifier
        self._site = site
        self._listener = listener
        self._orders = orders
        self._ended_jobs = SharedReads()
        self._tidying: asyncio.Task[None] | None = None
        self._tell_forgotten = job_forgotten
        self._retention = Retention(store.jobs, store.metrics, keep_days, self._forget)
        self._deletions = 0

    # Life of the process.

    async def start(self) -> None:
        """Take up what the store knows. The launcher will tell which jobs still have their workers."""
        self._listener.set_counts(await self._store.jobs.count_by_state())
        await forget_what_is_over(self._store.jobs, self._files, self._orders.checkpoint_root)
        checkpoint_times = await self._store.checkpoints.newest_checkpoints()
        for job in await self._store.jobs.live_jobs():
            self._live.add(replace(job, spec=fill_in_defaults(job.spec)))
            self._listener.job_taken_up(job, checkpoint_times.get(job.job_id))
        for job in await self._store.jobs.jobs_ended_since(datetime.now(UTC) - timedelta(seconds=KEPT_S)):
            self._listener.job_taken_up(job)
        await self._ledgers.start(self._listener.records)
        self._tidying = keep_running(self._keep_tidy(), name="tidy")
        self._dispatcher.start()

    async def _keep_tidy(self) -> None:
        while True:  # at once at first: a server before may have ended in the middle of deleting a job
            try:
                await self.tidy(datetime.now(UTC))
            except Exception:
                log.exception("tidying failed; tried again in a while")
            await asyncio.sleep(_TIDY_EVERY_S)

    async def tidy(self, now: datetime) -> None:
        """Forget what nobody is told of any more, and in the store what is older than the operator wants."""
        self._listener.forget_old_jobs(now)
        self._ledgers.forget(self._listener.records.__contains__)
        await self._retention.tidy(now)

    async def _forget(self, job_id: str, state: State) -> None:
        self._deletions += 1
        self._ended_jobs.forget(job_id)
        self._ledgers.drop(job_id)
        self._listener.job_forgotten(job_id, state)
        await self._tell_forgotten(job_id)

    async def drain(self) -> None:
        """Have all workers write checkpoints and leave; calls and streams go on meanwhile."""
        await self._dispatcher.drain()

    async def stop(self) -> None:
        """End the streams and stop scheduling; jobs stay as they are stored."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._notifier.close()
        await self._dispatcher.stop()
        await self._live.close()
        await self._ledgers.stop()

    # What users ask for.

    async def submit(self, submitted: JobSpec, *, owner: str, request_id: str, validate_only: bool) -> Job:
        """Check, store and queue a job of `owner`, whose request_id makes the call safe to repeat.

        Returns:
            The job; without a job_id when it was only checked.

        Raises:
            InvalidSpec: the spec breaks rules.
            ClusterTooSmall: the cluster can never run it. A job that is only checked says so in its state_reason.
            AlreadyExists: the request_id stands for another spec.
        """
        digest = submit_digest(submitted)
        try:
            why_no_memory = self._dispatcher.why_no_memory
            job, first_files = await make_job(submitted, owner, self._site, self._files, self._store, why_no_memory)
            too_small = self._dispatcher.why_it_never_fits(job.spec.resources)
            if not validate_only:
                if too_small is not None:
                    raise ClusterTooSmall(too_small)
                new = NewJob(job, request_id, digest)
                return await self._live.finish(self._store_new(new, first_files))
        except (InvalidSpec, ClusterTooSmall):
            # A repeated call is answered as the first one was, even when files or nodes have gone since.
            earlier = await self._store.jobs.find_request(owner, request_id, digest) if request_id else None
            if earlier is None or validate_only:
                raise
            return await self.get(earlier.job_id)
        refusal = "" if too_small is None else f"; this cluster is too small for it: {too_small}"
        return replace(job, job_id="", state_reason=f"checked only, nothing is stored{refusal}")

    async def _store_new(self, new: NewJob, first_files: tuple[str, ...]) -> Job:
        """Keep what a job starts from and store the job, or do neither; the caller may be gone before this ends."""
        kept = await keep_beside(new.job, first_files, self._files)
        is_new = False
        try:
            job, is_new = await self._store.jobs.submit(replace(new, job=kept))
        finally:
            if not is_new and kept.init_from_uri:
                await forget_beside(kept, self._files)
        if not is_new:
            return await self.get(job.job_id)
        self._listener.job_submitted(job)
        self._live.add(job)
        log.info("job submitted", job_id=job.job_id, name=job.spec.name, workers=job.spec.resources.workers)
        return job

    async def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            NotFound: there is no such job, or it is being deleted.
        """
        job = await self._find(job_id)
        if job is None:
            raise NotFound(f"there is no job {show(job_id)}; see `lockstep ls`, or call ListJobs, for those there are")
        return job

    async def has_job(self, job_id: str) -> bool:
        """Whether there is a job; one that is being deleted is not there any more."""
        return await self._find(job_id) is not None

    async def _find(self, job_id: str) -> Job | None:
        if job_id in self._retention.deleting:
            return None
        entry = self._live.entries.get(job_id)
        return entry.job if entry is not None else await self._ended(job_id)

    async def _ended(self, job_id: str) -> Job | None:
        """Read a job that is not live; what has ended stays as it is, and all who followed it ask at once."""
        kept: Job | None = self._ended_jobs.kept(job_id)
        if kept is not None:
            return kept
        deletions = self._deletions  # what was read before one is good enough for nobody who asks after it
        job = await self._ended_jobs.read((job_id, deletions), lambda: self._store.jobs.get_job(job_id))
        is_over = job is not None and job.state.has_ended and job_id not in self._live.entries
        if job is not None and is_over and deletions == self._deletions:
            self._ended_jobs.keep(job_id, job, job.spec.ByteSize() + _JOB_BYTES)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop.

        Raises:
            NotFound: there is no such job.
            JobHasEnded: it ended before.
        """
        return await self._ask(job_id, CancelAsked())

    async def pause(self, job_id: str) -> Job:
        """Ask a job to free its resources and to wait.

        Raises:
            NotFound: there is no such job.
            JobHasEnded: it ended before.
            JobIsStopping: it is being cancelled.
        """
        return await self._ask(job_id, PauseAsked())

    async def resume(self, job_id: str) -> Job:
        """Ask a paused job to go on.

        Raises:
            NotFound: there is no such job.
            JobHasEnded: it ended before.
            JobIsStopping: it has not stopped yet.
        """
        job = await self._ask(job_id, ResumeAsked())
        self._end_backoff(job_id)
        self._dispatcher.look_again(job_id)
        return job

    async def scale(self, job_id: str, workers: int) -> Job:
        """Have a job run with so many workers from now on.

        Raises:
            NotFound: there is no such job.
            JobHasEnded: it ended before.
            InvalidRequest: it may not have as many, or as few.
        """
        no_memory = self._dispatcher.why_no_memory(workers)
        if no_memory is not None:
            raise InvalidRequest.of("workers", f"is {workers}; {no_memory}")
        job = await self._ask(job_id, Scaled(workers))
        self._end_backoff(job_id)
        entry = self._live.entries.get(job_id)
        if entry is not None and entry.gang is not None:
            entry.gang.end_delay()
            entry.gang.refused.clear()  # The user may have mended a node.
        self._dispatcher.look_again(job_id)
        return job

    def _end_backoff(self, job_id: str) -> None:
        """Have a job wait no longer for its next attempt: the user has looked after it."""
        entry = self._live.entries.get(job_id)
        if entry is not None:
            entry.end_backoff()

    async def _ask(self, job_id: str, event: Event) -> Job:
        entry = self._live.entries.get(job_id) or Entry(await self.get(job_id))
        return await self._live.finish(self._live.locked_apply(entry, event))

    # What the workers say.

    async def report(self, report: Report) -> int:
        """Store a report of the current attempt.

        Returns:
            The highest sequence number of this generation that is stored.

        Raises:
            PermissionDenied: the token is wrong, or the attempt or the generation is over.
            InvalidRequest: the report's number is not the next one.
        """
        self.check_token(report.job_id, report.attempt, report.token.encode())
        entry = self._live.entries.get(report.job_id)
        if entry is None:
            # Its last report comes again, when a restart of the server took the answer along.
            job = await self._store.jobs.get_job(report.job_id)
            if job is None:
                raise PermissionDenied(f"there is no job {report.job_id[:80]!r}; stop")
            entry = Entry(job)
        return await self._live.finish(self._take_report(entry, report))

    def check_token(self, job_id: str, attempt: int, token: bytes) -> None:
        """Make sure that a call comes from an attempt of a job; it may be over.

        Raises:
            PermissionDenied: the token is wrong.
        """
        if not hmac.compare_digest(self._orders.token(job_id, attempt).encode(), token):
            raise PermissionDenied(f"the token is not that of attempt {attempt} of job {job_id[:80]!r}")

    def check_node_token(self, token: bytes) -> None:
        """Make sure that a call comes from the agent of a node.

        Raises:
            PermissionDenied: the token is wrong.
        """
        if not hmac.compare_digest(self._orders.node_token().encode(), token):
            raise PermissionDenied("the token is not that of this server's node agents")

    def has_workers(self, job_id: str) -> bool:
        """Whether a job has workers, or had until it ended and they have not left yet."""
        entry = self._live.entries.get(job_id)
        return entry is not None and entry.gang is not None

    async def _take_report(self, entry: Entry, report: Report) -> int:
        event = report.event
        async with entry.lock:
            job = entry.job
            if report.attempt != job.attempt:
                raise PermissionDenied(f"attempt {report.attempt} of job {job.job_id} is over; stop")
            if event.generation < job.generation:
                raise PermissionDenied(f"generation {event.generation} of job {job.job_id} is over; stop")
            stored = job.sequence if event.generation == job.generation else 0
            if event.sequence <= stored:
                return stored
            if not job.state.has_workers:
                raise PermissionDenied(f"job {job.job_id} is {job.state.name}; stop")
            if job.result is not None:
                raise PermissionDenied(f"job {job.job_id} has its result; stop")
            if event.sequence > stored + 1:
                raise InvalidRequest.of("sequence", f"is {event.sequence}; the next report is {stored + 1}")
            await self._live.apply(entry, event, report.status)
            return event.sequence

    def queued(self) -> list[str]:
        """Return the job_ids of the queued jobs, first come first."""
        return self._live.queued()

    def live_jobs(self) -> dict[str, tuple[Job, int]]:
        """Return the jobs in memory and how many workers each holds, by job_id."""
        return {
            job_id: (entry.job, len(entry.gang.node_ids) if entry.gang is not None else 0)
            for job_id, entry in self._live.entries.items()
        }

    def look_at_cluster(self) -> ClusterView:
        """Say what the cluster has, what runs where and what is warm."""
        return view.view(
            self._dispatcher.why_not_ready(),
            self._dispatcher.nodes_seen,
            held_by(self._live.holding.values()),
            self._dispatcher.processes,
            self._listener.jobs,
        )

    def counts(self) -> Mapping[str, int]:
        """Count what is held in memory: for tests and for a look from outside."""
        return {"entries": len(self._live.entries), "holding": len(self._live.holding)}
