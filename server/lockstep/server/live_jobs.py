"""The jobs in memory, and the one way in which they change.

Everything that changes a job goes through `LiveJobs.apply`, on the event loop, under the job's lock: advance, store,
and only then remember, wake watchers and run commands. What is in memory is therefore always on disk, and who is
answered can rely on it.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from lockstep.server.gangs import Entry, Gang, start_order
from lockstep.server.job import Command, Event, Job, Launch, RetryAfter, State, Stop
from lockstep.server.lifecycle import advance
from lockstep.server.scheduler import Request
from lockstep.server.store import Store, StoredPoint
from lockstep.server.telemetry import Telemetry
from lockstep.server.watch import Bells
from lockstep.v1.internal_service_pb2 import ConnectLauncherResponse, StopGang

T = TypeVar("T")

log = structlog.get_logger(__name__)


class LiveJobs:
    """Every job that has not ended, or whose gang is still there, with the queue.

    Attributes:
        entries: the jobs, by job_id.
        holding: the gangs that hold resources, by job_id.
        has_changed: set when the scheduler should look again.
        reports_address: where workers report to, host:port.
    """

    def __init__(self, store: Store, bells: Bells, telemetry: Telemetry) -> None:
        self.entries: dict[str, Entry] = {}
        self.holding: dict[str, Gang] = {}
        self.has_changed = asyncio.Event()
        self.reports_address = ""
        self._store = store
        self._bells = bells
        self._telemetry = telemetry
        self._queue: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """Wait for what is being stored, and start no more timers."""
        for entry in self.entries.values():
            if entry.backoff is not None:
                entry.backoff.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, job: Job) -> Entry:
        """Take in a job that the store holds already."""
        entry = self.entries[job.job_id] = Entry(job)
        if job.state is State.QUEUED:
            self._enqueue(job)
        return entry

    async def finish(self, work: Awaitable[T]) -> T:
        """Run to the end even when the caller goes away: what is stored and what is remembered must agree."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def locked_apply(self, entry: Entry, event: Event, attempt: int | None = None) -> Job:
        """Advance a job; with `attempt`, only while that attempt's gang is there."""
        async with entry.lock:
            if attempt is None or (entry.gang is not None and entry.gang.attempt == attempt):
                await self.apply(entry, event)
            return entry.job

    async def apply(self, entry: Entry, event: Event, points: Sequence[StoredPoint] = ()) -> None:
        """Advance a job and store it. The caller holds the entry's lock."""
        before = entry.job
        now = datetime.now(UTC)
        after, commands = advance(before, event, now)
        if after is before and not points:
            return
        tells = (after.state, after.state_reason, after.attempt) != (before.state, before.state_reason, before.attempt)
        saved = await self._store.save(after, message=after.state_reason if tells else "", now=now, points=points)
        entry.job = saved.job
        for text in saved.disagreements:
            log.error("the promise of one curve is broken", job_id=before.job_id, disagreement=text)
        if tells:
            log.info(
                "job changed",
                job_id=after.job_id,
                state=after.state.name,
                attempt=after.attempt,
                reason=after.state_reason,
            )
            self._telemetry.job_moved(before.state, after.state)
            self._requeue(before, after)
        self._bells.ring(after.job_id)
        for command in commands:
            self._run(entry, command)
        self.drop_if_over(entry)

    def _requeue(self, before: Job, after: Job) -> None:
        if before.state is State.QUEUED and after.state is not State.QUEUED:
            place = bisect.bisect_left(self._queue, (before.number, before.job_id))
            if place < len(self._queue) and self._queue[place][1] == before.job_id:
                del self._queue[place]
            self._telemetry.queue_depth = len(self._queue)
            self.has_changed.set()
        elif before.state is not State.QUEUED and after.state is State.QUEUED:
            self._enqueue(after)

    def _enqueue(self, job: Job) -> None:
        bisect.insort(self._queue, (job.number, job.job_id))
        self._telemetry.queue_depth = len(self._queue)
        self.has_changed.set()

    def set_gang(self, entry: Entry, gang: Gang | None) -> None:
        """Give a job its gang, or take it away."""
        entry.gang = gang
        if gang is None:
            self.holding.pop(entry.job.job_id, None)
        else:
            self.holding[entry.job.job_id] = gang

    def drop_if_over(self, entry: Entry) -> None:
        """Forget a job that has ended and whose gang is gone."""
        if entry.job.state.has_ended and entry.gang is None:
            self.entries.pop(entry.job.job_id, None)

    def _run(self, entry: Entry, command: Command) -> None:
        job, gang = entry.job, entry.gang
        match command:
            case Launch() if gang is not None:
                gang.line.order(start_order(job, gang, self.reports_address, self._store.epoch))
            case Stop(grace_s=grace_s) if gang is not None:
                stop = StopGang(job_id=job.job_id, attempt=job.attempt, grace_s=grace_s)
                gang.line.order(ConnectLauncherResponse(stop_gang=stop))
            case RetryAfter(delay_s=delay_s):
                entry.backoff = asyncio.get_running_loop().call_later(delay_s, self._end_backoff, entry)

    def _end_backoff(self, entry: Entry) -> None:
        entry.backoff = None
        self.has_changed.set()

    def waiting(self) -> Iterator[Request]:
        """Yield what the queued jobs ask for, first come first."""
        for _, job_id in self._queue:
            entry = self.entries[job_id]
            if entry.backoff is not None:
                return  # It keeps its place: nobody behind it goes first.
            yield entry.request()
