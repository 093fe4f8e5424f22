"""Everything that is written and read: jobs, their events, their metrics, their checkpoints."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete, func, insert, select, tuple_
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DatabaseError

from lockstep.server.errors import AlreadyExists
from lockstep.server.job import ENDED, LIVE, Job, State
from lockstep.server.store import plain, tables
from lockstep.server.store.engines import migrate, reading_engine, writing_engine
from lockstep.server.store.filters import ANY_JOB, JobFilter
from lockstep.server.store.moving import follow_checkpoint_root
from lockstep.server.store.points import insert_points, select_points
from lockstep.server.store.rows import (
    NOTHING_NEW,
    News,
    StoredCheckpoint,
    StoredEvent,
    StoredPoint,
    checkpoint_columns,
    checkpoint_of,
    event_of,
    job_of,
    point_of,
    to_microseconds,
)
from lockstep.server.store.writer import StoreError, Writer

T = TypeVar("T")

_MOST_JOBS_OF_A_QUERY = 500
_READERS = 8

_INSERT_LEDGER = sqlite_insert(tables.ledgers)
_UPSERT_LEDGER = _INSERT_LEDGER.on_conflict_do_update(
    index_elements=["job_id"], set_={"ledger": _INSERT_LEDGER.excluded.ledger}
)
_NEWEST_CHECKPOINT = (
    select(func.max(tables.checkpoints.c.step))
    .where(tables.checkpoints.c.job_id == tables.jobs.c.job_id)
    .scalar_subquery()
    .label("newest_checkpoint")
)
_JOBS = select(tables.jobs, _NEWEST_CHECKPOINT)
_SELECT_JOB = _JOBS.where(tables.jobs.c.job_id == bindparam("of_job"))


@dataclass(frozen=True)
class NewJob:
    """A job to store, with the caller's key that makes the call safe to repeat.

    Attributes:
        request_id: the key; empty for none.
        spec_digest: digest of the spec as submitted, to tell whether a repeated call is the same.
    """

    job: Job
    principal: str
    request_id: str
    spec_digest: str


@dataclass(frozen=True)
class Saved:
    """What became of a job that was saved.

    Attributes:
        job: as it is stored now.
        disagreements: in words, each result metric that came again with another value.
        new_points: how many points were not there before.
    """

    job: Job
    disagreements: tuple[str, ...] = ()
    new_points: int = 0


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
        self._writing = writing_engine(path)
        self._reading = reading_engine(path)
        try:
            migrate(self._writing)
            self.instance_id, self.epoch = self._start_epoch()
        except (DatabaseError, sqlite3.DatabaseError) as error:
            self._dispose()
            raise StoreError(
                f"{path} cannot be opened: {error.__cause__ or error}; "
                "put a good copy in its place, or choose another --data-dir"
            ) from error
        except StoreError:
            self._dispose()
            raise
        self._writer = Writer(self._writing, committed)
        # Its own: whatever else waits in threads does not hold up those who ask for jobs.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="lockstep-store-reader")

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
        return await self._writer.write(lambda connection: _submit(connection, new))

    async def save(
        self,
        job: Job,
        *,
        messages: Sequence[str] = (),
        now: datetime,
        news: News = NOTHING_NEW,
        writes_spec: bool = False,
    ) -> Saved:
        """Store a job as it is now, with an event for each message and with what a report brought.

        A point that is there already stays as it is. A *result* that comes again with another value breaks the promise
        of one curve: the first one stays, and an event says so. A checkpoint that is there already is replaced.
        """
        return await self._writer.write(lambda connection: _save(connection, job, messages, now, news, writes_spec))

    async def save_ledgers(self, ledgers: Mapping[str, Mapping[str, Any]]) -> None:
        """Store ledgers by job_id, in place of those before."""
        rows = [{"job_id": job_id, "ledger": ledger} for job_id, ledger in ledgers.items()]
        await self._writer.write(lambda connection: connection.execute(_UPSERT_LEDGER, rows))

    # Reading.

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a connection of its own, off the event loop."""

        def run() -> T:
            with self._reading.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def try_out(self) -> None:
        """Begin a write and read something, as every call does.

        Raises:
            StoreError: it cannot be written, or is closed.
        """
        await self._writer.write(lambda connection: None)
        await self.read(lambda connection: connection.execute(select(tables.meta).limit(1)).all())

    async def get_job(self, job_id: str) -> Job | None:
        row = await self.read(lambda connection: connection.execute(_SELECT_JOB, {"of_job": job_id}).one_or_none())
        return None if row is None else job_of(row)

    async def find_request(self, principal: str, request_id: str, spec_digest: str) -> Job | None:
        """Find the job of an earlier call.

        Raises:
            AlreadyExists: the request_id stands for another spec.
        """
        return await self.read(lambda connection: _find_request(connection, principal, request_id, spec_digest))

    async def list_jobs(self, *, before: int | None, limit: int, which: JobFilter = ANY_JOB) -> list[Job]:
        """Read jobs, newest first, from the one before number `before` on."""
        query = _JOBS.where(*which.conditions()).order_by(tables.jobs.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.jobs.c.number < before)
        return [job_of(row) for row in await self.read(lambda connection: connection.execute(query).all())]

    async def count_jobs(self, which: JobFilter) -> int:
        """Count jobs."""
        query = select(func.count()).select_from(tables.jobs).where(*which.conditions())
        return int(await self.read(lambda connection: connection.execute(query).scalar_one()))

    async def live_jobs(self) -> list[Job]:
        """Read all jobs that have not ended, oldest first."""
        states = [state.value for state in LIVE]
        query = _JOBS.where(tables.jobs.c.state.in_(states)).order_by(tables.jobs.c.number)
        return [job_of(row) for row in await self.read(lambda connection: connection.execute(query).all())]

    async def jobs_ended_since(self, time: datetime) -> list[Job]:
        """Read the jobs that have ended since then, oldest first."""
        query = _JOBS.where(tables.jobs.c.end_time >= to_microseconds(time)).order_by(tables.jobs.c.number)
        return [job_of(row) for row in await self.read(lambda connection: connection.execute(query).all())]

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
    ) -> list[StoredPoint]:
        """Read points by (kind, step, name), from the one after `after` on; kind 0 and no names mean all."""
        points = tables.metric_points.c
        query = select_points(job_id, names, kind).order_by(points.kind, points.step, points.name).limit(limit)
        if after_step:
            query = query.where(points.step > after_step)
        if after is not None:
            query = query.where(tuple_(points.kind, points.step, points.name) > after)
        return [point_of(row) for row in await self.read(lambda connection: connection.execute(query).all())]

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

    async def list_checkpoints(self, job_id: str, *, before: int | None, limit: int) -> list[StoredCheckpoint]:
        """Read the checkpoints of a job that are kept, newest first, from the one before step `before` on."""
        checkpoints = tables.checkpoints.c
        query = select(tables.checkpoints).where(checkpoints.job_id == job_id).order_by(checkpoints.step.desc())
        if before is not None:
            query = query.where(checkpoints.step < before)
        rows = await self.read(lambda connection: connection.execute(query.limit(limit)).all())
        return [checkpoint_of(row) for row in rows]

    async def get_checkpoint(self, job_id: str, step: int | None) -> StoredCheckpoint | None:
        """Read a checkpoint of a job; without a step the newest."""
        if step is None:
            return next(iter(await self.list_checkpoints(job_id, before=None, limit=1)), None)
        checkpoints = tables.checkpoints.c
        query = select(tables.checkpoints).where(checkpoints.job_id == job_id, checkpoints.step == step)
        row = await self.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else checkpoint_of(row)

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


def _find_request(connection: Connection, principal: str, request_id: str, spec_digest: str) -> Job | None:
    found = plain.find_request(plain.driver_of(connection), principal, request_id)
    if found is None:
        return None
    job_id, digest = found
    if digest != spec_digest:
        raise AlreadyExists(
            f"request_id {request_id!r} was used with another spec, for job {job_id}; use a new request_id"
        )
    return job_of(connection.execute(_SELECT_JOB, {"of_job": job_id}).one())


def _submit(connection: Connection, new: NewJob) -> tuple[Job, bool]:
    if new.request_id:
        earlier = _find_request(connection, new.principal, new.request_id, new.spec_digest)
        if earlier is not None:
            return earlier, False
    driver = plain.driver_of(connection)
    job = replace(new.job, number=plain.insert_job(driver, new.job), event_count=1)
    plain.insert_event(driver, job, "submitted", job.create_time)
    plain.insert_labels(driver, job.job_id, job.spec.labels)
    if new.request_id:
        plain.insert_request(driver, new.principal, new.request_id, new.spec_digest, job.job_id)
    return job, True


def _save(
    connection: Connection, job: Job, messages: Sequence[str], now: datetime, news: News, writes_spec: bool
) -> Saved:
    driver = plain.driver_of(connection)
    # Disagreements come before the state's own event, so that the event of the end stays the last one.
    disagreements, new_points = insert_points(connection, job.job_id, news.points)
    if news.checkpoints is not None:
        _replace_checkpoints(connection, job.job_id, news.checkpoints)
    for text in (*disagreements, *messages):
        job = replace(job, event_count=job.event_count + 1)
        plain.insert_event(driver, job, text, now)
    plain.update_job(driver, job, writes_spec=writes_spec)
    return Saved(job, tuple(disagreements), new_points)


def _replace_checkpoints(connection: Connection, job_id: str, checkpoints: Sequence[StoredCheckpoint]) -> None:
    table = tables.checkpoints
    connection.execute(delete(table).where(table.c.job_id == job_id))
    rows = {checkpoint.step: checkpoint_columns(checkpoint) for checkpoint in checkpoints}
    if rows:
        connection.execute(insert(table), list(rows.values()))
