"""The checkpoints of jobs in the store: those that are kept, as the workers told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, delete, func, insert, select

from lockstep.server.jobs.job import LIVE
from lockstep.server.jobs.records import StoredCheckpoint, StoredFile
from lockstep.server.store import tables
from lockstep.server.store.database import Database
from lockstep.server.store.tables import from_microseconds, to_microseconds

T = TypeVar("T")

_OTHERS = tables.checkpoints.alias("others")
# Beside a row of the jobs: the step of the newest checkpoint, NULL when there is none.
NEWEST_STEP = select(func.max(_OTHERS.c.step)).where(_OTHERS.c.job_id == tables.jobs.c.job_id).scalar_subquery()


class CheckpointStore:
    """Checkpoints by job and step."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        return await self._database.read(
            lambda connection: make([_checkpoint_of(row) for row in connection.execute(query)])
        )

    async def get_checkpoint(self, job_id: str, step: int | None) -> StoredCheckpoint | None:
        """Read a checkpoint of a job; without a step the newest."""
        if step is None:
            return next(iter(await self.list_checkpoints(job_id, before=None, limit=1, make=list)), None)
        checkpoints = tables.checkpoints.c
        query = select(tables.checkpoints).where(checkpoints.job_id == job_id, checkpoints.step == step)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _checkpoint_of(row)

    async def newest_checkpoints(self) -> dict[str, datetime]:
        """Read when the newest checkpoint of each job that has not ended was written; jobs without are left out."""
        checkpoints, jobs = tables.checkpoints.c, tables.jobs.c
        states = [state.value for state in LIVE]
        query = select(checkpoints.job_id, checkpoints.create_time)
        query = query.join(tables.jobs, jobs.job_id == checkpoints.job_id)
        query = query.where(jobs.state.in_(states), checkpoints.step == NEWEST_STEP)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {job_id: from_microseconds(time) for job_id, time in rows}


def replace_checkpoints(connection: Connection, job_id: str, checkpoints: Sequence[StoredCheckpoint]) -> None:
    """Have a job keep these checkpoints and no others; of several of one step the last counts."""
    table = tables.checkpoints
    connection.execute(delete(table).where(table.c.job_id == job_id))
    rows = {checkpoint.step: _columns_of(checkpoint) for checkpoint in checkpoints}
    if rows:
        connection.execute(insert(table), list(rows.values()))


def _columns_of(checkpoint: StoredCheckpoint) -> dict[str, Any]:
    return {
        "job_id": checkpoint.job_id,
        "step": checkpoint.step,
        "uri": checkpoint.uri,
        "create_time": to_microseconds(checkpoint.create_time),
        "weights_digest": checkpoint.weights_digest,
        "files": [asdict(file) for file in checkpoint.files],
    }


def _checkpoint_of(row: Row[Any]) -> StoredCheckpoint:
    files = tuple(StoredFile(**file) for file in row.files)
    return StoredCheckpoint(
        row.job_id, row.step, row.uri, from_microseconds(row.create_time), row.weights_digest, files
    )
