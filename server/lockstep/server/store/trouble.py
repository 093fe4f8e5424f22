"""What is wrong when the store cannot be opened or written, and what helps."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from alembic.util import CommandError
from google.protobuf.message import DecodeError
from sqlalchemy.exc import DatabaseError, DBAPIError

from lockstep.server.errors import DiskFull, StoreUnwritable

_IS_FULL_BELOW_BYTES = 1 << 20
# What says of one change that it is wrong; everything else says that the store is.
_OF_ONE_CHANGE = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
_FULL = 13  # SQLITE_FULL

# What reading a damaged store ends in, besides SQLite's own errors.
DAMAGES = (DatabaseError, sqlite3.DatabaseError, CommandError, DecodeError, ValueError, KeyError, TypeError)


class StoreError(Exception):
    """The store cannot be opened or is closed."""


def sqlite_error_of(error: BaseException) -> sqlite3.Error | None:
    """Find SQLite's own error."""
    if isinstance(error, DBAPIError):
        return error.orig if isinstance(error.orig, sqlite3.Error) else None
    return error if isinstance(error, sqlite3.Error) else None


def is_of_the_store(error: BaseException) -> bool:
    """Whether it says that nothing can be written, and not only this."""
    found = sqlite_error_of(error)
    return found is not None and not isinstance(found, _OF_ONE_CHANGE)


def is_full_disk(error: BaseException, folder: Path) -> bool:
    """Whether it comes of a full disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    found = sqlite_error_of(error)
    if found is None:
        return False
    if getattr(found, "sqlite_errorcode", 0) & 0xFF == _FULL:
        return True
    try:  # Some of SQLite's files cannot be made longer, which it calls an I/O error.
        return shutil.disk_usage(folder).free < _IS_FULL_BELOW_BYTES
    except OSError:
        return False


def why_unwritable(error: BaseException, folder: Path) -> StoreUnwritable:
    """Say to who wanted to write why that is not possible now."""
    if is_full_disk(error, folder):
        return DiskFull(f"the disk of {folder} is full; nothing was stored; free some space there and try again")
    return StoreUnwritable(f"the store in {folder} cannot be written: {error}; nothing was stored; try again")


def why_unopenable(error: BaseException, path: Path) -> str:
    """Say to who starts the server why its store cannot be used, and what helps."""
    if is_full_disk(error, path.parent):
        return f"the disk of --data-dir {path.parent} is full; free some space there, or choose another --data-dir"
    found = sqlite_error_of(error)
    words = str(found) if found is not None else f"{type(error).__name__}: {error}"
    return (
        f"{path} cannot be opened: {words}; put a good copy in its place and remove {path.name}-wal and "
        f"{path.name}-shm beside it, or choose another --data-dir"
    )
