"""What the store says of places in the data folder, when that was moved or is a copy."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Table, func, select, update
from sqlalchemy.dialects.sqlite import insert

from lockstep.server.store import tables

_KEY = "checkpoint_root"


def follow_checkpoint_root(connection: Connection, root: str) -> str:
    """Have checkpoints that lie below the data folder be where it is now, and note that for the next time.

    Args:
        connection: in a transaction.
        root: folder of the checkpoints of jobs that do not say where, an absolute path.

    Returns:
        Where it was before; empty when it is there still, or when this is the first time.
    """
    before: str | None = connection.execute(select(tables.meta.c.value).where(tables.meta.c.key == _KEY)).scalar()
    if before == root:
        return ""
    upsert = insert(tables.meta).values(key=_KEY, value=root)
    connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": root}))
    if before is None:
        return ""
    _move(connection, tables.checkpoints, tables.checkpoints.c.uri, before, root)
    _move(connection, tables.jobs, tables.jobs.c.init_from_uri, before, root)
    return before


def _move(connection: Connection, table: Table, column: Column[str], before: str, root: str) -> None:
    is_below = func.substr(column, 1, len(before) + 1) == f"{before}/"
    connection.execute(update(table).where(is_below).values({column: root + func.substr(column, len(before) + 1)}))
