"""What is wrong when the store cannot be opened or written, and what helps."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from alembic.util import CommandError
from google.protobuf.message import DecodeError
from sqlalchemy.exc import DatabaseError

from lockstep.server.errors import DiskFull, StoreUnwritable
from lockstep.server.store import dialect

_IS_FULL_BELOW_BYTES = 1 << 20

# What reading a damaged store ends in.
DAMAGES = (DatabaseError, *dialect.ERRORS, CommandError, DecodeError, ValueError, KeyError, TypeError)


class StoreError(Exception):
    """The store cannot be opened or is closed."""


def is_full_disk(error: BaseException, folder: Path) -> bool:
    """Whether it comes of a full disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if dialect.error_of(error) is None:
        return False
    if dialect.says_disk_full(error):
        return True
    try:  # A database may call it an I/O error when some of its files cannot be made longer.
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
    found = dialect.error_of(error)
    words = str(found) if found is not None else f"{type(error).__name__}: {error}"
    return f"{path} cannot be opened: {words}; {dialect.how_to_replace(path)}, or choose another --data-dir"
