"""Everything that is written and read: jobs, their events, their metrics, their checkpoints."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import JSON, Connection, String, bindparam, exists, func, select, tuple_
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from lockstep.server.jobs.job import ENDED, LIVE, Job, State
from lockstep.server.jobs.records import NOTHING_NEW, Status, StoredCheckpoint, StoredEvent, StoredPoint
from lockstep.server.store import deletion, tables, writes
from lockstep.server.store.engines import migrate, reading_engine, writing_engine
from lockstep.server.store.filters import ANY_JOB, JobFilter
from lockstep.server.store.moving import follow_checkpoint_root
from lockstep.server.store.points import select_points
from lockstep.server.store.rows import checkpoint_of, event_of, from_microseconds, job_of, point_of, to_microseconds
from lockstep.server.store.trouble import DAMAGES, StoreError, why_unopenable
from lockstep.server.store.wal import Committed, committed_frames, lost_frames
from lockstep.server.store.writer import Writer
from lockstep.server.store.writes import JOBS, SELECT_JOB, NewJob, Saved

T = TypeVar("T")

log = structlog.get_logger(__name__)

_MOST_JOBS_OF_A_QUERY = 500
_READERS = 8

_OF_JOB, _TOLD = bindparam("of_job", type_=String), bindparam("told", type_=JSON)
_INSERT_LEDGER = sqlite_insert(tables.ledgers).from_select(
    ["job_id", "ledger"], select(_OF_JOB, _TOLD).where(exists().where(tables.jobs.c.job_id == _OF_JOB))
)
_UPSERT_LEDGER = _INSERT_LEDGER.on_conflict_do_update(
    index_elements=["job_id"], set_={"ledger": _INSERT_LEDGER.excluded.ledger}
)


class Store:
    """The store of one data folder. Writes go through one thread; reads are their own short connections."""

    def __init__(self, path: Path, committed: Callable[[int, float], None] = lambda changes, seconds: None) -> None:
        """Open the store and bring its tables up to date.

        Args:
            path: of its file; the folder is there.
            committed: told of each commit by the writer's thread: how many changes it held and how long it took.

        Raises:
            StoreError: it cannot be opened.
        """
        committed_before = committed_frames(path)
        self._writing = writing_engine(path)
        self._reading = reading_engine(path)
        try:
            self._look_for_losses(committed_before)
            migrate(self._writing)
            self.instance_id, self.epoch = self._start_epoch()
        except DAMAGES as error:
            self._dispose()
            raise StoreError(why_unopenable(error, path)) from error
        except StoreError:
            self._dispose()
            raise
        self._writer = Writer(self._writing, path.parent, committed)
        # Its own: whatever else waits in threads does not hold up those who ask for jobs.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="lockstep-store-reader")

    def _look_for_losses(self, before: Committed | None) -> None:
        with self._reading.connect() as connection:
            _, frames, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()
        lost = lost_frames(before, frames)
        if lost:
            log.error(
                "changes that were acknowledged are lost: the store's write-ahead log is damaged; the newest jobs, "
                "events and points may be missing; put a good copy of the data folder in its place if you have one",
                lost_pages=lost,
                found_pages=frames,
            )

    def _dispose(self) -> None:
        self._writing.dispose()
        self._reading.dispose()

    def close(self) -> None:
        """Write what is queued and close every connection."""
        self._writer.close()
        self._readers.shutdown()
        self._dispose()

    def _start_epoch(self) -> tuple[str, int]:
        with self._writing.begin() as connection:
            known = {row.key: row.value for row in connection.execute(select(tables.meta))}
            instance_id = known.get("instance_id") or secrets.token_hex(6)
            epoch = int(known.get("epoch", "0")) + 1
            for key, value in (("instance_id", instance_id), ("epoch", str(epoch))):
                upsert = sqlite_insert(tables.meta).values(key=key, value=value)
                connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": value}))
        return instance_id, epoch

    def follow_checkpoint_root(self, root: str) -> str:
        """Have checkpoints below the data folder be where it is now; see `moving`. Before anything else is written."""
        with self._writing.begin() as connection:
            return follow_checkpoint_root(connection, root)

    # Writing.

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Store a job, or find the one that an earlier call with this request_id stored.

        Returns:
            The job, and whether it is new.

        Raises:
            AlreadyExists: the request_id stands for another spec.
        """
        return await self._writer.write(lambda connection: writes.submit(connection, new))

    async def save(
        self,
        job: Job,
        *,
        messages: Sequence[str] = (),
        now: datetime,
        status: Status = NOTHING_NEW,
        writes_spec: bool = False,
    ) -> Saved:
        """Store a job as it is now, with an event for each message and with what a report brought.

        A point that is there already stays as it is. A *result* that comes again with another value breaks the promise
        of one curve: the first one stays, and an event says so. A checkpoint that is there already is replaced.
        """
        return await self._writer.write(
            lambda connection: writes.save(connection, job, messages, now, status, writes_spec)
        )

    async def save_ledgers(self, ledgers: Mapping[str, Mapping[str, Any]]) -> None:
        """Store ledgers by job_id, in place of those before; those of jobs that were deleted are left out."""
        rows = [{"of_job": job_id, "told": ledger} for job_id, ledger in ledgers.items()]
        await self._writer.write(lambda connection: connection.execute(_UPSERT_LEDGER, rows))

    async def delete_points(self, job_id: str, limit: int) -> int:
        """Delete points of a job; fewer than `limit` when none are left."""
        return await self._writer.write(lambda connection: deletion.delete_points(connection, job_id, limit))

    async def delete_job(self, job_id: str) -> None:
        """Delete a job whose points are deleted."""
        await self._writer.write(lambda connection: deletion.delete_job(connection, job_id))

    # Reading.

    async def ended_before(self, time: datetime, limit: int) -> list[tuple[str, State]]:
        """Read job_id and state of jobs that ended before then, oldest first."""
        return await self.read(lambda connection: deletion.ended_before(connection, time, limit))

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a connection of its own, off the event loop."""

        def run() -> T:
            with self._reading.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def try_out(self) -> None:
        """Begin a write and read something, as every call does.

        Raises:
            StoreUnwritable: it cannot be written.
            StoreError: it is closed.
        """
        await self._writer.try_out()
        await self.read(lambda connection: connection.execute(select(tables.meta).limit(1)).all())

    async def get_job(self, job_id: str) -> Job | None:
        row = await self.read(lambda connection: connection.execute(SELECT_JOB, {"of_job": job_id}).one_or_none())
        return None if row is None else job_of(row)

    async def find_request(self, principal: str, request_id: str, spec_digest: str) -> Job | None:
        """Find the job of an earlier call.

        Raises:
            AlreadyExists: the request_id stands for another spec.
        """
        return await self.read(lambda connection: writes.find_request(connection, principal, request_id, spec_digest))

    async def list_jobs(
        self, *, before: int | None, limit: int, make: Callable[[list[Job]], T], which: JobFilter = ANY_JOB
    ) -> T:
        """Read jobs, newest first, from the one before number `before` on.

        Returns:
            What `make` makes of them, off the event loop.
        """
        query = JOBS.where(*which.conditions()).order_by(tables.jobs.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.jobs.c.number < before)
        return await self.read(lambda connection: make([job_of(row) for row in connection.execute(query)]))

    async def known(self, job_ids: Iterable[str]) -> set[str]:
        """Return those of these that are the ids of jobs."""
        asked = set(job_ids)
        query = select(tables.jobs.c.job_id)
        return await self.read(lambda connection: asked.intersection(connection.execute(query).scalars()))

    async def count_jobs(self, which: JobFilter) -> int:
        """Count jobs."""
        query = select(func.count()).select_from(tables.jobs).where(*which.conditions())
        return int(await self.read(lambda connection: connection.execute(query).scalar_one()))

    async def live_jobs(self) -> list[Job]:
        """Read all jobs that have not ended, oldest first."""
        states = [state.value for state in LIVE]
        query = JOBS.where(tables.jobs.c.state.in_(states)).order_by(tables.jobs.c.number)
        return await self.read(lambda connection: [job_of(row) for row in connection.execute(query)])

    async def jobs_ended_since(self, time: datetime) -> list[Job]:
        """Read the jobs that have ended since then, oldest first."""
        query = JOBS.where(tables.jobs.c.end_time >= to_microseconds(time)).order_by(tables.jobs.c.number)
        return await self.read(lambda connection: [job_of(row) for row in connection.execute(query)])

    async def first_weights_of_ended(self) -> list[tuple[str, str]]:
        """Read job_id and init_from_uri of the jobs that have ended and did not start from fresh weights."""
        jobs = tables.jobs.c
        states = [state.value for state in ENDED]
        query = select(jobs.job_id, jobs.init_from_uri).where(jobs.init_from_uri != "", jobs.state.in_(states))
        rows = await self.read(lambda connection: connection.execute(query).all())
        return [(row.job_id, row.init_from_uri) for row in rows]

    async def count_by_state(self) -> dict[State, int]:
        query = select(tables.jobs.c.state, func.count()).group_by(tables.jobs.c.state)
        rows = await self.read(lambda connection: connection.execute(query).all())
        return {State(state): count for state, count in rows}

    async def list_events(self, job_id: str, *, after: int, up_to: int, limit: int) -> list[StoredEvent]:
        """Read events with `after` < sequence <= `up_to`, in order."""
        events = tables.job_events
        query = select(events).where(events.c.job_id == job_id, events.c.sequence > after, events.c.sequence <= up_to)
        query = query.order_by(events.c.sequence).limit(limit)
        return [event_of(row) for row in await self.read(lambda connection: connection.execute(query).all())]

    async def list_points(
        self,
        job_id: str,
        *,
        names: Sequence[str],
        kind: int,
        after_step: int,
        after: tuple[int, int, str] | None,
        limit: int,
        make: Callable[[list[StoredPoint]], T],
    ) -> T:
        """Read points by (kind, step, name), from the one after `after` on; kind 0 and no names mean all.

        Returns:
            What `make` makes of them, off the event loop.
        """
        points = tables.metric_points.c
        query = select_points(job_id, names, kind).order_by(points.kind, points.step, points.name).limit(limit)
        if after_step:
            query = query.where(points.step > after_step)
        if after is not None:
            query = query.where(tuple_(points.kind, points.step, points.name) > after)
        return await self.read(lambda connection: make([point_of(row) for row in connection.execute(query)]))

    async def new_points(
        self,
        job_id: str,
        *,
        names: Sequence[str],
        kind: int,
        after_seq: int,
        limit: int,
        make: Callable[[list[StoredPoint]], T],
    ) -> T:
        """Read points in the order in which they were stored, from the one after `after_seq` on.

        Returns:
            What `make` makes of them, off the event loop.
        """
        points = tables.metric_points.c
        query = select_points(job_id, names, kind).where(points.seq > after_seq).order_by(points.seq).limit(limit)
        return await self.read(lambda connection: make([point_of(row) for row in connection.execute(query)]))

    async def list_checkpoints(
        self, job_id: str, *, before: int | None, limit: int, make: Callable[[list[StoredCheckpoint]], T]
    ) -> T:
        """Read the checkpoints of a job that are kept, newest first, from the one before step `before` on.

        Returns:
            What `make` makes of them, off the event loop.
        """
        checkpoints = tables.checkpoints.c
        query = select(tables.checkpoints).where(checkpoints.job_id == job_id).order_by(checkpoints.step.desc())
        if before is not None:
            query = query.where(checkpoints.step < before)
        query = query.limit(limit)
        return await self.read(lambda connection: make([checkpoint_of(row) for row in connection.execute(query)]))

    async def get_checkpoint(self, job_id: str, step: int | None) -> StoredCheckpoint | None:
        """Read a checkpoint of a job; without a step the newest."""
        if step is None:
            return next(iter(await self.list_checkpoints(job_id, before=None, limit=1, make=list)), None)
        checkpoints = tables.checkpoints.c
        query = select(tables.checkpoints).where(checkpoints.job_id == job_id, checkpoints.step == step)
        row = await self.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else checkpoint_of(row)

    async def newest_checkpoints(self) -> dict[str, datetime]:
        """Read when the newest checkpoint of each job that has not ended was written; jobs without are left out."""
        checkpoints, jobs = tables.checkpoints.c, tables.jobs.c
        states = [state.value for state in LIVE]
        # SQLite takes the other columns from the row of the maximum.
        query = select(checkpoints.job_id, checkpoints.create_time, func.max(checkpoints.step))
        query = query.join(tables.jobs, jobs.job_id == checkpoints.job_id).where(jobs.state.in_(states))
        rows = await self.read(lambda connection: connection.execute(query.group_by(checkpoints.job_id)).all())
        return {job_id: from_microseconds(time) for job_id, time, _ in rows}

    async def load_ledgers(self, job_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Read the ledgers of jobs, by job_id; those that have none are left out."""
        wanted = list(job_ids)

        def read(connection: Connection) -> dict[str, Mapping[str, Any]]:
            found: dict[str, Mapping[str, Any]] = {}
            for start in range(0, len(wanted), _MOST_JOBS_OF_A_QUERY):
                some = wanted[start : start + _MOST_JOBS_OF_A_QUERY]
                query = select(tables.ledgers).where(tables.ledgers.c.job_id.in_(some))
                found |= {row.job_id: row.ledger for row in connection.execute(query)}
            return found

        return await self.read(read)
