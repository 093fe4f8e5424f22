"""What a submit and a change of a job write: pieces of work for the one writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from lockstep.server.errors import AlreadyExists
from lockstep.server.jobs.job import Job
from lockstep.server.jobs.records import Status, StoredCheckpoint
from lockstep.server.store import plain, tables
from lockstep.server.store.points import insert_points
from lockstep.server.store.rows import checkpoint_columns, job_of

_NEWEST_CHECKPOINT = (
    select(func.max(tables.checkpoints.c.step))
    .where(tables.checkpoints.c.job_id == tables.jobs.c.job_id)
    .scalar_subquery()
    .label("newest_checkpoint")
)
JOBS = select(tables.jobs, _NEWEST_CHECKPOINT)
SELECT_JOB = JOBS.where(tables.jobs.c.job_id == bindparam("of_job"))


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


def find_request(connection: Connection, principal: str, request_id: str, spec_digest: str) -> Job | None:
    found = plain.find_request(plain.driver_of(connection), principal, request_id)
    if found is None:
        return None
    job_id, digest = found
    if digest != spec_digest:
        raise AlreadyExists(
            f"request_id {request_id!r} was used with another spec, for job {job_id}; use a new request_id"
        )
    return job_of(connection.execute(SELECT_JOB, {"of_job": job_id}).one())


def submit(connection: Connection, new: NewJob) -> tuple[Job, bool]:
    if new.request_id:
        earlier = find_request(connection, new.job.owner, new.request_id, new.spec_digest)
        if earlier is not None:
            return earlier, False
    driver = plain.driver_of(connection)
    job = replace(new.job, number=plain.insert_job(driver, new.job), event_count=1)
    plain.insert_event(driver, job, "submitted", job.create_time)
    plain.insert_labels(driver, job.job_id, job.spec.labels)
    if new.request_id:
        plain.insert_request(driver, new.job.owner, new.request_id, new.spec_digest, job.job_id)
    return job, True


def save(
    connection: Connection, job: Job, messages: Sequence[str], now: datetime, status: Status, writes_spec: bool
) -> Saved:
    driver = plain.driver_of(connection)
    # Disagreements come before the state's own event, so that the event of the end stays the last one.
    disagreements, new_points = insert_points(connection, job.job_id, status.points)
    if status.checkpoints is not None:
        _replace_checkpoints(connection, job.job_id, status.checkpoints)
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
