"""What is SQLite's own: connections, statements, savepoints, errors, and whether all of its log was found again.

Everything else takes these names from `dialect`.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ClauseElement, Connection, Engine, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

_BUSY_TIMEOUT_MS = 10_000

# Connections.


def writing_engine(path: Path) -> Engine:
    """Make the engine of the one writer; each transaction takes the write lock at its start."""
    engine = _engine(path, pool_size=1)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        _driver_of(connection).execute("BEGIN IMMEDIATE")

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


def _driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection; what is done with it is part of the same transaction."""
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


# Statements.

# An insert that knows what to do where the row is there already.
insert_or_update = sqlite.insert


class Statement:
    """What every submit and every report writes: SQL that is compiled once and goes through the driver as it is.

    SQLAlchemy's own execution of one insert takes as long as all that a submit writes. Values have the types that the
    driver knows: JSON is text (`to_json`), a NaN is stored as NULL by SQLite itself.
    """

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        """Compile a statement.

        Args:
            statement: made of the tables' descriptions.
            columns: those that it writes; None for what the statement itself names.
        """
        dialect = sqlite.dialect(paramstyle="named")
        self._sql = str(statement.compile(dialect=dialect, column_keys=columns))

    def run(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Run it."""
        _driver_of(connection).execute(self._sql, values)

    def run_for_each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each of some rows.

        Returns:
            How many rows it has changed in all.
        """
        return max(0, _driver_of(connection).executemany(self._sql, rows).rowcount)

    def insert(self, connection: Connection, row: Mapping[str, Any]) -> int:
        """Insert a row into a table that numbers its rows.

        Returns:
            The row's number.
        """
        number = _driver_of(connection).execute(self._sql, row).lastrowid
        assert number is not None
        return number

    def first(self, connection: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Read the first row that it finds; None when there is none."""
        row: tuple[Any, ...] | None = _driver_of(connection).execute(self._sql, values).fetchone()
        return row


def to_json(value: Any) -> str:
    """Write what a `Statement` stores in a column of JSON."""
    return json.dumps(value) if value else "{}"


class Transaction:
    """A transaction that several changes share, each in a savepoint of its own.

    Plainly: SQLAlchemy's own savepoint takes longer than most of what happens in it.
    """

    def __init__(self, connection: Connection) -> None:
        self._driver = _driver_of(connection)
        self._before = self._driver.total_changes

    @property
    def has_changed(self) -> bool:
        """Whether anything was written in it."""
        return self._driver.total_changes != self._before

    @property
    def goes_on(self) -> bool:
        """Whether it is open: SQLite rolls it back by itself when the disk is full or fails."""
        return self._driver.in_transaction

    def begin_change(self) -> None:
        """Begin a change that can be undone by itself."""
        self._driver.execute("SAVEPOINT one")

    def end_change(self) -> None:
        """Keep the change."""
        self._driver.execute("RELEASE one")

    def undo_change(self) -> None:
        """Undo the change."""
        self._driver.execute("ROLLBACK TO one")
        self._driver.execute("RELEASE one")


# Errors.

# What says of one change that it is wrong; everything else says that the store is.
_OF_ONE_CHANGE = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
_FULL = 13  # SQLITE_FULL

# What reading a damaged store ends in.
ERRORS = (sqlite3.DatabaseError,)


def error_of(error: BaseException) -> sqlite3.Error | None:
    """Find SQLite's own error."""
    if isinstance(error, DBAPIError):
        return error.orig if isinstance(error.orig, sqlite3.Error) else None
    return error if isinstance(error, sqlite3.Error) else None


def is_of_the_store(error: BaseException) -> bool:
    """Whether it says that nothing can be written, and not only this."""
    found = error_of(error)
    return found is not None and not isinstance(found, _OF_ONE_CHANGE)


def says_disk_full(error: BaseException) -> bool:
    """Whether SQLite itself says that the disk is full; some of its files it calls an I/O error."""
    return getattr(error_of(error), "sqlite_errorcode", 0) & 0xFF == _FULL


def how_to_replace(path: Path) -> str:
    """Say to who has a good copy of a damaged store what to do with it."""
    return f"put a good copy in its place and remove {path.name}-wal and {path.name}-shm beside it"


# Whether SQLite has found all of its write-ahead log again. It reads the log up to the first frame that is damaged and
# says nothing of the rest. How many frames were committed stands in the index beside it, which outlives a process that
# was killed: when fewer were found, what was acknowledged is gone.

# https://www.sqlite.org/walformat.html: the log is big-endian, its index as the machine is.
_WAL_SALT = struct.Struct(">8s")
_WAL_SALT_AT = 16
_INDEX = struct.Struct("=II8s8s")  # mxFrame, nPage, aFrameCksum, aSalt
_INDEX_AT = 16
_INDEX_BYTES = 136


@dataclass(frozen=True)
class Committed:
    """What the index says of a log: how many frames of it were committed, and which log it means."""

    frames: int
    salt: bytes


def committed_before(path: Path) -> Committed | None:
    """Look at the log of a store before it is opened; None when nothing is known."""
    try:
        with path.with_name(f"{path.name}-shm").open("rb") as file:
            index = file.read(_INDEX_BYTES)
        with path.with_name(f"{path.name}-wal").open("rb") as file:
            header = file.read(32)
    except OSError:
        return None
    if len(index) < _INDEX_BYTES:
        return None
    frames, _, _, salt = _INDEX.unpack_from(index, _INDEX_AT)
    if len(header) == 32 and _WAL_SALT.unpack_from(header, _WAL_SALT_AT)[0] != salt:
        return None  # of another log: the index was not written to the disk any more
    return Committed(frames, salt)


def lost_pages(connection: Connection, before: Committed | None) -> tuple[int, int]:
    """Count the pages that were committed and not found again, one a frame, and those that were found.

    Args:
        connection: the first to the store since it was opened.
        before: what was known of the log before.
    """
    _, found, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()
    return max(0, before.frames - found) if before is not None else 0, found
