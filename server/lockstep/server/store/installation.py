"""What the store knows of the installation itself: who it is, which start this is, and where its data folder lies."""

from __future__ import annotations

import secrets

from sqlalchemy import Column, Connection, Table, func, select, update

from lockstep.contract.checkpoints import LOCAL_SCHEMES
from lockstep.server.store import tables
from lockstep.server.store.database import Database
from lockstep.server.store.dialect import insert_or_update

_INSTANCE_ID, _EPOCH, _CHECKPOINT_ROOT = "instance_id", "epoch", "checkpoint_root"


class ClusterStore:
    """The installation, from the start of this server on.

    Attributes:
        instance_id: of the installation, made by its first start.
        epoch: number of this start, from 1.
    """

    def __init__(self, database: Database) -> None:
        """Begin the next epoch. Before anything else is written."""
        self._database = database
        self.instance_id, self.epoch = database.write_now(_begin_epoch)

    def follow_checkpoint_root(self, root: str) -> str:
        """Have checkpoints below the data folder be where it is now, when that was moved or is a copy.

        It is noted for the next time. Before anything else is written.

        Args:
            root: folder of the checkpoints of jobs that do not say where, an absolute path.

        Returns:
            Where it was before; empty when it is there still, or when this is the first time.
        """
        return self._database.write_now(lambda connection: _follow_checkpoint_root(connection, root))


def _begin_epoch(connection: Connection) -> tuple[str, int]:
    instance_id = _read(connection, _INSTANCE_ID) or secrets.token_hex(6)
    epoch = int(_read(connection, _EPOCH) or "0") + 1
    _note(connection, _INSTANCE_ID, instance_id)
    _note(connection, _EPOCH, str(epoch))
    return instance_id, epoch


def _follow_checkpoint_root(connection: Connection, root: str) -> str:
    before = _read(connection, _CHECKPOINT_ROOT)
    if before == root:
        return ""
    _note(connection, _CHECKPOINT_ROOT, root)
    if before is None:
        return ""
    for scheme in ("", *LOCAL_SCHEMES):  # workers name a path with one
        _move(connection, tables.checkpoints, tables.checkpoints.c.uri, scheme + before, scheme + root)
        _move(connection, tables.jobs, tables.jobs.c.init_from_uri, scheme + before, scheme + root)
    return before


def _read(connection: Connection, key: str) -> str | None:
    return connection.execute(select(tables.meta.c.value).where(tables.meta.c.key == key)).scalar()


def _note(connection: Connection, key: str, value: str) -> None:
    upsert = insert_or_update(tables.meta).values(key=key, value=value)
    connection.execute(upsert.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def _move(connection: Connection, table: Table, column: Column[str], before: str, root: str) -> None:
    is_below = func.substr(column, 1, len(before) + 1) == f"{before}/"
    connection.execute(update(table).where(is_below).values({column: root + func.substr(column, len(before) + 1)}))
