"""Deleting what a job has left in the store, a little at a time: other writes go on in between."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, select

from lockstep.server.jobs.job import State
from lockstep.server.store import tables
from lockstep.server.store.rows import to_microseconds

# The job last: the others refer to it.
_SMALL_TABLES = (tables.labels, tables.job_events, tables.checkpoints, tables.ledgers, tables.requests, tables.jobs)


def ended_before(connection: Connection, time: datetime, limit: int) -> list[tuple[str, State]]:
    """Return job_id and state of jobs that ended before then, oldest first."""
    jobs = tables.jobs.c
    query = select(jobs.job_id, jobs.state).where(jobs.end_time < to_microseconds(time)).order_by(jobs.number)
    return [(job_id, State(state)) for job_id, state in connection.execute(query.limit(limit))]


def delete_points(connection: Connection, job_id: str, limit: int) -> int:
    """Delete points of a job.

    Returns:
        How many were deleted; fewer than `limit` when none are left.
    """
    points = tables.metric_points.c
    some = select(points.seq).where(points.job_id == job_id).limit(limit)
    return connection.execute(delete(tables.metric_points).where(points.seq.in_(some))).rowcount


def delete_job(connection: Connection, job_id: str) -> None:
    """Delete a job whose points are deleted, and everything that belongs to it."""
    for table in _SMALL_TABLES:
        connection.execute(delete(table).where(table.c.job_id == job_id))
