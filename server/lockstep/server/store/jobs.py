"""Jobs with their events in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update

from lockstep.server.errors import AlreadyExists
from lockstep.server.jobs.job import ENDED, LIVE, Job, State
from lockstep.server.jobs.records import NOTHING_NEW, Status, StoredEvent
from lockstep.server.store import tables
from lockstep.server.store.checkpoints import NEWEST_STEP, replace_checkpoints
from lockstep.server.store.database import Database
from lockstep.server.store.dialect import Statement
from lockstep.server.store.filters import ANY_JOB, JobFilter
from lockstep.server.store.job_rows import changing_columns, event_of, fixed_columns, job_of
from lockstep.server.store.metrics import insert_points
from lockstep.server.store.tables import to_microseconds

T = TypeVar("T")

_JOBS = select(tables.jobs, NEWEST_STEP.label("newest_checkpoint"))
_SELECT_JOB = _JOBS.where(tables.jobs.c.job_id == bindparam("of_job"))

# What goes with a job, apart from its points; the job last, since the others refer to it.
_TABLES_OF_A_JOB = (tables.labels, tables.job_events, tables.checkpoints, tables.ledgers, tables.requests, tables.jobs)

_FIXED = ("job_id", "name", "create_time", "engine_version", "curve_digest", "init_from_uri", "owner")


def _columns_but(table: Table, *left_out: str) -> list[str]:
    return [column.name for column in table.columns if column.name not in left_out]


_INSERT_JOB = Statement(insert(tables.jobs), _columns_but(tables.jobs, "number"))
_INSERT_LABEL = Statement(insert(tables.labels), _columns_but(tables.labels))
_INSERT_EVENT = Statement(insert(tables.job_events), _columns_but(tables.job_events))
_INSERT_REQUEST = Statement(insert(tables.requests), _columns_but(tables.requests))
_UPDATE_JOB, _UPDATE_JOB_AND_SPEC = (
    Statement(
        update(tables.jobs).where(tables.jobs.c.job_id == bindparam("of_job")),
        _columns_but(tables.jobs, "number", *_FIXED, *left_out),
    )
    for left_out in (("spec",), ())
)
_SELECT_REQUEST = Statement(
    select(tables.requests.c.job_id, tables.requests.c.spec_digest).where(
        tables.requests.c.principal == bindparam("of_principal"),
        tables.requests.c.request_id == bindparam("of_request"),
    )
)


@dataclass(frozen=True)
class NewJob:
    """A job to store, with the caller's key that makes the call safe to repeat.

    Attributes:
        request_id: the key, one of the job's owner; empty for none.
        spec_digest: digest of the spec as submitted, to tell whether a repeated call is the same.
    """

    job: Job
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


class JobStore:
    """Jobs, their events, and the calls that made them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Store a job, or find the one that an earlier call with this request_id stored.

        Returns:
            The job, and whether it is new.

        Raises:
            AlreadyExists: the request_id stands for another spec.
        """
        return await self._database.write(lambda connection: _submit(connection, new))

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
        return await self._database.write(lambda connection: _save(connection, job, messages, now, status, writes_spec))

    async def delete_job(self, job_id: str) -> None:
        """Delete a job whose points are deleted, and everything that belongs to it."""
        await self._database.write(lambda connection: _delete(connection, job_id))

    async def get_job(self, job_id: str) -> Job | None:
        row = await self._database.read(
            lambda connection: connection.execute(_SELECT_JOB, {"of_job": job_id}).one_or_none()
        )
        return None if row is None else job_of(row)

    async def find_request(self, owner: str, request_id: str, spec_digest: str) -> Job | None:
        """Find the job that an earlier call of this owner made.

        Raises:
            AlreadyExists: the request_id stands for another spec.
        """
        return await self._database.read(lambda connection: _find_request(connection, owner, request_id, spec_digest))

    async def list_jobs(
        self, *, before: int | None, limit: int, make: Callable[[list[Job]], T], which: JobFilter = ANY_JOB
    ) -> T:
        """Read jobs, newest first, from the one before number `before` on.

        Returns:
            What `make` makes of them, off the event loop.
        """
        query = _JOBS.where(*which.conditions()).order_by(tables.jobs.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(tables.jobs.c.number < before)
        return await self._database.read(lambda connection: make([job_of(row) for row in connection.execute(query)]))

    async def known(self, job_ids: Iterable[str]) -> set[str]:
        """Return those of these that are the ids of jobs."""
        asked = set(job_ids)
        query = select(tables.jobs.c.job_id)
        return await self._database.read(lambda connection: asked.intersection(connection.execute(query).scalars()))

    async def count_jobs(self, which: JobFilter) -> int:
        """Count jobs."""
        query = select(func.count()).select_from(tables.jobs).where(*which.conditions())
        return int(await self._database.read(lambda connection: connection.execute(query).scalar_one()))

    async def live_jobs(self) -> list[Job]:
        """Read all jobs that have not ended, oldest first."""
        states = [state.value for state in LIVE]
        query = _JOBS.where(tables.jobs.c.state.in_(states)).order_by(tables.jobs.c.number)
        return await self._database.read(lambda connection: [job_of(row) for row in connection.execute(query)])

    async def ended_before(self, time: datetime, limit: int) -> list[tuple[str, State]]:
        """Read job_id and state of jobs that ended before then, oldest first."""
        jobs = tables.jobs.c
        query = select(jobs.job_id, jobs.state).where(jobs.end_time < to_microseconds(time)).order_by(jobs.number)
        rows = await self._database.read(lambda connection: connection.execute(query.limit(limit)).all())
        return [(job_id, State(state)) for job_id, state in rows]

    async def jobs_ended_since(self, time: datetime) -> list[Job]:
        """Read the jobs that have ended since then, oldest first."""
        query = _JOBS.where(tables.jobs.c.end_time >= to_microseconds(time)).order_by(tables.jobs.c.number)
        return await self._database.read(lambda connection: [job_of(row) for row in connection.execute(query)])

    async def first_weights_of_ended(self) -> list[tuple[str, str]]:
        """Read job_id and init_from_uri of the jobs that have ended and did not start from fresh weights."""
        jobs = tables.jobs.c
        states = [state.value for state in ENDED]
        query = select(jobs.job_id, jobs.init_from_uri).where(jobs.init_from_uri != "", jobs.state.in_(states))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.job_id, row.init_from_uri) for row in rows]

    async def count_by_state(self) -> dict[State, int]:
        query = select(tables.jobs.c.state, func.count()).group_by(tables.jobs.c.state)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {State(state): count for state, count in rows}

    async def list_events(self, job_id: str, *, after: int, up_to: int, limit: int) -> list[StoredEvent]:
        """Read events with `after` < sequence <= `up_to`, in order."""
        events = tables.job_events
        query = select(events).where(events.c.job_id == job_id, events.c.sequence > after, events.c.sequence <= up_to)
        query = query.order_by(events.c.sequence).limit(limit)
        return [event_of(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]


def _find_request(connection: Connection, owner: str, request_id: str, spec_digest: str) -> Job | None:
    found = _SELECT_REQUEST.first(connection, {"of_principal": owner, "of_request": request_id})
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
        earlier = _find_request(connection, new.job.owner, new.request_id, new.spec_digest)
        if earlier is not None:
            return earlier, False
    columns = fixed_columns(new.job) | changing_columns(new.job) | {"event_count": 1}
    job = replace(new.job, number=_INSERT_JOB.insert(connection, columns), event_count=1)
    _insert_event(connection, job, "submitted", job.create_time)
    _insert_labels(connection, job.job_id, job.spec.labels)
    if new.request_id:
        request = {"principal": job.owner, "request_id": new.request_id, "spec_digest": new.spec_digest}
        _INSERT_REQUEST.run(connection, request | {"job_id": job.job_id})
    return job, True


def _save(
    connection: Connection, job: Job, messages: Sequence[str], now: datetime, status: Status, writes_spec: bool
) -> Saved:
    # Disagreements come before the state's own event, so that the event of the end stays the last one.
    disagreements, new_points = insert_points(connection, job.job_id, status.points)
    if status.checkpoints is not None:
        replace_checkpoints(connection, job.job_id, status.checkpoints)
    for text in (*disagreements, *messages):
        job = replace(job, event_count=job.event_count + 1)
        _insert_event(connection, job, text, now)
    _update_job(connection, job, writes_spec=writes_spec)
    return Saved(job, tuple(disagreements), new_points)


def _update_job(connection: Connection, job: Job, *, writes_spec: bool) -> None:
    """Write what has changed of a job, and its spec only if asked to."""
    columns = changing_columns(job) | {"of_job": job.job_id}
    if writes_spec:
        columns["spec"] = job.spec.SerializeToString(deterministic=True)
    (_UPDATE_JOB_AND_SPEC if writes_spec else _UPDATE_JOB).run(connection, columns)


def _insert_event(connection: Connection, job: Job, message: str, now: datetime) -> None:
    """Insert the event whose number is the job's `event_count`."""
    row = {"job_id": job.job_id, "sequence": job.event_count, "time": to_microseconds(now), "state": job.state.value}
    _INSERT_EVENT.run(connection, row | {"attempt": job.attempt, "message": message})


def _insert_labels(connection: Connection, job_id: str, labels: Mapping[str, str]) -> None:
    """Insert the labels of a new job."""
    if labels:
        rows = [{"job_id": job_id, "key": key, "value": value} for key, value in labels.items()]
        _INSERT_LABEL.run_for_each(connection, rows)


def _delete(connection: Connection, job_id: str) -> None:
    for table in _TABLES_OF_A_JOB:
        connection.execute(delete(table).where(table.c.job_id == job_id))
