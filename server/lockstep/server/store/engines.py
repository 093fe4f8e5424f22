"""Connections to SQLite, and the migrations that run when a store is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event

from lockstep.server.store.plain import driver_of
from lockstep.server.store.trouble import StoreError

_BUSY_TIMEOUT_MS = 10_000


def writing_engine(path: Path) -> Engine:
    """Make the engine of the one writer; each transaction takes the write lock at its start."""
    engine = _engine(path, pool_size=1)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver_of(connection).execute("BEGIN IMMEDIATE")

    return engine


def reading_engine(path: Path) -> Engine:
    """Make the engine of the readers; it cannot write."""
    return _engine(path, pool_size=8, query_only=True)


def _engine(path: Path, *, pool_size: int, query_only: bool = False) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path.absolute())), pool_size=pool_size, max_overflow=8)

    @event.listens_for(engine, "connect")
    def connect(dbapi_connection: Any, record: Any) -> None:
        # The driver shall begin no transactions of its own: it would commit around savepoints.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={'ON' if query_only else 'OFF'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def migrate(engine: Engine, target: str = "head") -> None:
    """Bring the tables to a revision; to the newest when none is named.

    Raises:
        StoreError: a newer Lockstep has written this store.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in scripts.walk_revisions()}
        if revision is not None and revision not in known:
            raise StoreError(
                f"{engine.url.database} was written by a newer Lockstep (revision {revision}); "
                "start that version, or choose another --data-dir"
            )
        if revision != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, target)
