"""Metric points in the store: each is there once, and the first value stays."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Select, select

from lockstep.server.jobs.records import StoredPoint
from lockstep.server.store import tables
from lockstep.server.store.plain import driver_of, insert_new_points
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT


def select_points(job_id: str, names: Sequence[str], kind: int) -> Select[tuple[object, ...]]:
    """Select the points of a job; no names and kind 0 mean all."""
    points = tables.metric_points
    query: Select[tuple[object, ...]] = select(points).where(points.c.job_id == job_id)
    if names:
        query = query.where(points.c.name.in_(names))
    if kind:
        query = query.where(points.c.kind == kind)
    return query


def insert_points(connection: Connection, job_id: str, points: Sequence[StoredPoint]) -> tuple[list[str], int]:
    """Insert those points that are not there yet.

    Returns:
        In words, each result metric that came again with another value; and how many points are new.
    """
    if not points:
        return [], 0
    inserted = insert_new_points(driver_of(connection), job_id, points)
    if inserted == len(points):
        return [], inserted
    return _disagreements(connection, job_id, points), inserted


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
