"""The jobs in memory, and the one way in which they change.

Everything that changes a job goes through `LiveJobs.apply`, on the event loop, under the job's lock: advance, store,
and only then remember, wake watchers and run commands. What is in memory is therefore always on disk, and who is
answered can rely on it.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from lockstep.server.checkpoints.init_from import forget_beside
from lockstep.server.coordinator.fit_checks import Unchecked
from lockstep.server.coordinator.gangs import Entry, Gang
from lockstep.server.coordinator.listener import JobListener
from lockstep.server.coordinator.orders import Orders
from lockstep.server.errors import FilesHang, ShuttingDown
from lockstep.server.jobs.job import Command, Event, Job, Launch, Note, RetryAfter, State, Stop
from lockstep.server.jobs.lifecycle import advance
from lockstep.server.jobs.records import NOTHING_NEW, Status
from lockstep.server.process.file_pool import FilePool
from lockstep.server.scheduling.scheduler import Request
from lockstep.server.scheduling.waiting import QueuePlace
from lockstep.server.store import JobStore
from lockstep.server.watching.notifier import Notifier

T = TypeVar("T")

log = structlog.get_logger(__name__)


class LiveJobs:
    """Every job that has not ended, or whose gang is still there, with the queue.

    Attributes:
        entries: the jobs, by job_id.
        holding: the gangs that hold resources, by job_id and attempt; also those that belong to no job of `entries`.
        has_changed: set when the scheduler should look again.
        gang_has_left: set when a gang is gone.
        waits_for_room: the queued job that did not fit at the newest look, if there was one: whoever comes behind it
            changes nothing.
        unchecked: the jobs that are to be looked at, whether they can ever fit.
    """

    def __init__(
        self, stored: JobStore, files: FilePool, notifier: Notifier, listener: JobListener, orders: Orders
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.holding: dict[tuple[str, int], Gang] = {}
        self.has_changed = asyncio.Event()
        self.gang_has_left = asyncio.Event()
        self.waits_for_room: str | None = None
        self.unchecked = Unchecked()
        self._stored = stored
        self._files = files
        self._notifier = notifier
        self._listener = listener
        self._orders = orders
        self._queue: list[tuple[int, str]] = []
        self._tasks: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """Wait for what is being stored, and start no more timers."""
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)  # who waits for this no longer does not end them
        finally:
            for entry in self.entries.values():
                entry.end_backoff()
            for gang in self.holding.values():
                gang.end_delay()

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

    async def apply(self, entry: Entry, event: Event, status: Status = NOTHING_NEW) -> None:
        """Advance a job and store it. The caller holds the entry's lock."""
        before = entry.job
        now = datetime.now(UTC)
        after, commands = advance(before, event, now)
        messages = [command.message for command in commands if isinstance(command, Note)]
        if after is before and not messages and status == NOTHING_NEW:
            return
        tells = (after.state, after.state_reason, after.attempt) != (before.state, before.state_reason, before.attempt)
        if tells:
            messages.append(after.state_reason)
        saved = await self._stored.save(
            after, messages=messages, now=now, status=status, writes_spec=after.spec is not before.spec
        )
        entry.job = saved.job
        self._tell_operators(after, messages, saved.disagreements)
        self._listener.job_changed(before, after, status, saved.new_points)
        if tells:
            self._requeue(before, after)
        self._notifier.notify(after.job_id)
        for command in commands:
            self._run(entry, command)
        self.drop_if_over(entry)

    def _tell_operators(self, after: Job, messages: list[str], disagreements: tuple[str, ...]) -> None:
        for text in disagreements:
            log.error("the promise of one curve is broken", job_id=after.job_id, disagreement=text)
        for text in messages:
            log.info("job changed", job_id=after.job_id, state=after.state.name, attempt=after.attempt, reason=text)
        if after.state is State.FAILED and after.error is not None:
            log.warning("job failed", job_id=after.job_id, reason=after.error.reason, error=after.error.message)

    def _requeue(self, before: Job, after: Job) -> None:
        if before.state is State.QUEUED and after.state is not State.QUEUED:
            place = bisect.bisect_left(self._queue, (before.number, before.job_id))
            if place < len(self._queue) and self._queue[place][1] == before.job_id:
                del self._queue[place]
            self._listener.queue_depth = len(self._queue)
            self.has_changed.set()
        elif before.state is not State.QUEUED and after.state is State.QUEUED:
            self._enqueue(after)

    def _enqueue(self, job: Job) -> None:
        bisect.insort(self._queue, (job.number, job.job_id))
        self._listener.queue_depth = len(self._queue)
        ahead = self.entries.get(self.waits_for_room or "")
        if ahead is None or ahead.job.state is not State.QUEUED or ahead.job.number > job.number:
            self.has_changed.set()

    def set_gang(self, entry: Entry, gang: Gang | None) -> None:
        """Give a job its gang, or take it away."""
        job_id = entry.job.job_id
        if entry.gang is not None:
            self.release(job_id, entry.gang.attempt)
        entry.gang = gang
        if gang is not None:
            self.holding[job_id, gang.attempt] = gang

    def release(self, job_id: str, attempt: int) -> bool:
        """Count what a gang holds as free.

        Returns:
            Whether there was such a gang.
        """
        gang = self.holding.pop((job_id, attempt), None)
        if gang is None:
            return False
        gang.end_delay()
        self.gang_has_left.set()
        self.has_changed.set()
        return True

    def drop_if_over(self, entry: Entry) -> None:
        """Forget a job that has ended and whose gang is gone."""
        if entry.job.state.has_ended and entry.gang is None and self.entries.pop(entry.job.job_id, None) is not None:
            self._notifier.notify(entry.job.job_id)
            if entry.job.init_from_uri:
                task = asyncio.ensure_future(self._forget_first_weights(entry.job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _forget_first_weights(self, job: Job) -> None:
        try:
            await forget_beside(job, self._files)
        except (FilesHang, ShuttingDown) as error:  # the next server does it
            log.warning("first weights are left behind", job_id=job.job_id, why=error.message)

    def _run(self, entry: Entry, command: Command) -> None:
        job, gang = entry.job, entry.gang
        match command:
            case Launch() if gang is not None:
                self._orders.start(job, gang)
            case Stop():
                self._orders.stop(job.job_id, job.attempt, command)
            case RetryAfter(delay_s=delay_s):
                entry.end_backoff()
                entry.backoff = asyncio.get_running_loop().call_later(delay_s, self._end_backoff, entry)

    def _end_backoff(self, entry: Entry) -> None:
        entry.backoff = None
        self.has_changed.set()

    def delay_resize(self, gang: Gang, delay_s: float) -> None:
        """Leave a gang as it is for a while."""
        gang.end_delay()
        gang.delay = asyncio.get_running_loop().call_later(delay_s, self._end_delay, gang)

    def _end_delay(self, gang: Gang) -> None:
        gang.delay = None
        self.has_changed.set()

    def queued(self) -> list[str]:
        """Return the job_ids of the queued jobs, first come first."""
        return [job_id for _, job_id in self._queue]

    def place_of(self, job: Job) -> QueuePlace | None:
        """Where a job stands in the queue; None when it does not wait there. Any thread may ask."""
        ahead = bisect.bisect_left(self._queue, (job.number, job.job_id))
        # Slices, since the queue may have become shorter meanwhile.
        first, there = self._queue[:1], self._queue[ahead : ahead + 1]
        return QueuePlace(ahead, first[0][1]) if first and there and there[0][1] == job.job_id else None

    def waiting(self) -> Iterator[Request]:
        """Yield what the queued jobs ask for, first come first."""
        for _, job_id in self._queue:
            yield self.entries[job_id].request()

    def resizable(self) -> list[Entry]:
        """Return the jobs whose gangs may grow or shrink now, oldest first."""
        found = []
        for (job_id, _), gang in self.holding.items():
            entry = self.entries.get(job_id)
            if entry is None or entry.gang is not gang or gang.delay is not None:
                continue
            if entry.job.state in (State.STARTING, State.RUNNING) and entry.job.result is None:
                found.append(entry)
        return sorted(found, key=lambda entry: entry.job.number)
