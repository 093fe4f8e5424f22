"""The metric points of jobs in the store: each is there once, and the first value stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, delete, select, tuple_

from lockstep.server.jobs.records import StoredPoint
from lockstep.server.store import tables
from lockstep.server.store.database import Database
from lockstep.server.store.dialect import Statement, insert_or_update
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT

T = TypeVar("T")

_INSERT_NEW = Statement(
    insert_or_update(tables.metric_points).on_conflict_do_nothing(index_elements=["job_id", "name", "step"]),
    ("job_id", "name", "step", "kind", "epoch", "value"),
)


class MetricStore:
    """Metric points by job, name and step."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        query = _select(job_id, names, kind).order_by(points.kind, points.step, points.name).limit(limit)
        if after_step:
            query = query.where(points.step > after_step)
        if after is not None:
            query = query.where(tuple_(points.kind, points.step, points.name) > after)
        return await self._database.read(lambda connection: make([_point_of(row) for row in connection.execute(query)]))

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
        query = _select(job_id, names, kind).where(points.seq > after_seq).order_by(points.seq).limit(limit)
        return await self._database.read(lambda connection: make([_point_of(row) for row in connection.execute(query)]))

    async def delete_points(self, job_id: str, limit: int) -> int:
        """Delete points of a job, a little at a time: other writes go on in between.

        Returns:
            How many were deleted; fewer than `limit` when none are left.
        """
        points = tables.metric_points.c
        some = select(points.seq).where(points.job_id == job_id).limit(limit)
        change = delete(tables.metric_points).where(points.seq.in_(some))
        return await self._database.write(lambda connection: connection.execute(change).rowcount)


def insert_points(connection: Connection, job_id: str, points: Sequence[StoredPoint]) -> tuple[list[str], int]:
    """Insert those points that are not there yet.

    Returns:
        In words, each result metric that came again with another value; and how many points are new.
    """
    if not points:
        return [], 0
    rows = [
        {"job_id": job_id, "name": p.name, "step": p.step, "kind": p.kind, "epoch": p.epoch, "value": p.value}
        for p in points
    ]
    inserted = _INSERT_NEW.run_for_each(connection, rows)
    if inserted == len(points):
        return [], inserted
    return _disagreements(connection, job_id, points), inserted


def _select(job_id: str, names: Sequence[str], kind: int) -> Select[tuple[object, ...]]:
    """Select the points of a job; no names and kind 0 mean all."""
    points = tables.metric_points
    query: Select[tuple[object, ...]] = select(points).where(points.c.job_id == job_id)
    if names:
        query = query.where(points.c.name.in_(names))
    if kind:
        query = query.where(points.c.kind == kind)
    return query


def _disagreements(connection: Connection, job_id: str, points: Sequence[StoredPoint]) -> list[str]:
    found = []
    columns = tables.metric_points.c
    for point in points:
        if point.kind != METRIC_KIND_RESULT:
            continue
        query = select(columns.value).where(
            columns.job_id == job_id, columns.name == point.name, columns.step == point.step
        )
        stored = connection.execute(query).scalar_one()
        if stored != point.value and not (stored != stored and point.value != point.value):
            found.append(
                f"THE CURVE DIFFERS: {point.name} at step {point.step} was {stored!r} and came again as "
                f"{point.value!r}; the first value stays"
            )
    return found


def _point_of(row: Row[Any]) -> StoredPoint:
    return StoredPoint(row.name, row.step, row.epoch, row.value, row.kind, row.seq)
