"""What every submit and every report writes, as plain SQL that is compiled once.

SQLAlchemy's own execution of one insert takes as long as all of these together. The statements are made of the tables'
descriptions, and what goes through the driver as it is has the types that the driver knows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Executable, Table, bindparam, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from lockstep.server.jobs.job import Job
from lockstep.server.jobs.records import StoredPoint
from lockstep.server.store import tables
from lockstep.server.store.rows import changing_columns, fixed_columns, to_microseconds

_POINT_COLUMNS = ("job_id", "name", "step", "kind", "epoch", "value")


def _sql(statement: Executable, columns: Sequence[str] | None = None) -> str:
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named"), column_keys=columns))  # type: ignore[attr-defined]


def _insert(table: Table, without: str = "") -> str:
    return _sql(insert(table), [column.name for column in table.columns if column.name != without])


_INSERT_JOB = _insert(tables.jobs, without="number")
_INSERT_LABEL = _insert(tables.labels)
_INSERT_EVENT = _insert(tables.job_events)
_INSERT_REQUEST = _insert(tables.requests)
_UPDATE_JOB, _UPDATE_JOB_AND_SPEC = (
    _sql(
        update(tables.jobs).where(tables.jobs.c.job_id == bindparam("of_job")),
        [column.name for column in tables.jobs.columns if column.name not in ("number", "job_id", *left_out)],
    )
    for left_out in (
        ("name", "create_time", "spec", "engine_version", "curve_digest", "init_from_uri", "owner"),
        ("name", "create_time", "engine_version", "curve_digest", "init_from_uri", "owner"),
    )
)
_INSERT_POINT = _sql(
    sqlite_insert(tables.metric_points).on_conflict_do_nothing(index_elements=["job_id", "name", "step"]),
    _POINT_COLUMNS,
)
_SELECT_REQUEST = _sql(
    select(tables.requests.c.job_id, tables.requests.c.spec_digest).where(
        tables.requests.c.principal == bindparam("of_principal"),
        tables.requests.c.request_id == bindparam("of_request"),
    )
)


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection; what is done with it is part of the same transaction."""
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def insert_job(driver: sqlite3.Connection, job: Job) -> int:
    """Insert a job that has its first event.

    Returns:
        Its number.
    """
    number = driver.execute(_INSERT_JOB, fixed_columns(job) | _changing(job) | {"event_count": 1}).lastrowid
    assert number is not None
    return number


def update_job(driver: sqlite3.Connection, job: Job, *, writes_spec: bool) -> None:
    """Write what has changed of a job, and its spec only if asked to."""
    columns = _changing(job) | {"of_job": job.job_id}
    if writes_spec:
        columns["spec"] = job.spec.SerializeToString(deterministic=True)
    driver.execute(_UPDATE_JOB_AND_SPEC if writes_spec else _UPDATE_JOB, columns)


def _changing(job: Job) -> dict[str, Any]:
    columns = changing_columns(job)
    columns["timeline"] = json.dumps(columns["timeline"]) if columns["timeline"] else "{}"
    return columns


def insert_event(driver: sqlite3.Connection, job: Job, message: str, now: datetime) -> None:
    """Insert the event whose number is the job's `event_count`."""
    row = {"job_id": job.job_id, "sequence": job.event_count, "time": to_microseconds(now), "state": job.state.value}
    driver.execute(_INSERT_EVENT, row | {"attempt": job.attempt, "message": message})


def insert_labels(driver: sqlite3.Connection, job_id: str, labels: Mapping[str, str]) -> None:
    """Insert the labels of a new job."""
    if labels:
        driver.executemany(
            _INSERT_LABEL, [{"job_id": job_id, "key": key, "value": value} for key, value in labels.items()]
        )


def insert_request(driver: sqlite3.Connection, principal: str, request_id: str, digest: str, job_id: str) -> None:
    """Insert the key of a call that makes it safe to repeat."""
    row = {"principal": principal, "request_id": request_id, "spec_digest": digest, "job_id": job_id}
    driver.execute(_INSERT_REQUEST, row)


def find_request(driver: sqlite3.Connection, principal: str, request_id: str) -> tuple[str, str] | None:
    """Find a call by its key.

    Returns:
        The job that it has made and the digest of its spec; None when there was no such call.
    """
    found: tuple[str, str] | None = driver.execute(
        _SELECT_REQUEST, {"of_principal": principal, "of_request": request_id}
    ).fetchone()
    return found


def insert_new_points(driver: sqlite3.Connection, job_id: str, points: Iterable[StoredPoint]) -> int:
    """Insert those points that are not there yet.

    Returns:
        How many they were.
    """
    # SQLite has no NaN, and stores NULL for it by itself.
    rows = [
        {"job_id": job_id, "name": p.name, "step": p.step, "kind": p.kind, "epoch": p.epoch, "value": p.value}
        for p in points
    ]
    return max(0, driver.executemany(_INSERT_POINT, rows).rowcount)
