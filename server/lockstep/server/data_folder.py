"""The data folder: locked by one server, and closed to other users."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import structlog

from lockstep.server.process.private_files import is_open_to_others
from lockstep.server.settings import Address, StartupError

_LOCK = "server.lock"
# What is made in it, by whoever comes first. What is in the folders takes its rights from them.
_FILES = ("lockstep.db", "lockstep.db-wal", "lockstep.db-shm", _LOCK)
_FOLDERS = ("logs", "checkpoints")

log = structlog.get_logger(__name__)


def take(folder: Path, ports: Iterable[tuple[str, Address]]) -> IO[str]:
    """Make the data folder and lock it; the lock lasts as long as the file is open, and so as this process.

    Args:
        folder: where it is or shall be.
        ports: what shall be listened on, by option. When one is taken no folder is made, and one that is there is left
            as it is.

    Raises:
        StartupError: it cannot be used, another server has it, or a port is taken.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:
        raise StartupError(
            f"--data-dir {os.fsencode(folder)!r} is not UTF-8, and no job could be told of it; choose another"
        ) from error
    taken = _taken(ports)
    if taken and not (folder / _LOCK).exists():
        raise taken
    file = _lock(folder)
    if taken:
        file.close()
        raise taken
    try:
        # A server that was killed left its addresses; nobody shall take them for ours.
        (folder / "server.json").unlink(missing_ok=True)
        _close_to_others(folder)
    except OSError as error:
        file.close()
        raise _unusable(folder, error) from error
    return file


def identity(folder: Path) -> str:
    """Return what a copy of a data folder has different, as does one that was moved; 12 hex digits."""
    about = folder.stat()
    return hashlib.sha256(f"{folder.resolve()} {about.st_ino}".encode()).hexdigest()[:12]


def _lock(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.fdopen(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    except FileExistsError as error:
        raise StartupError(f"--data-dir {folder} is no folder; choose another") from error
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = file.read().strip() or "unknown"
        file.close()
        raise StartupError(
            f"--data-dir {folder} is in use by the server with pid {pid}; stop that one or choose another folder"
        ) from error
    try:
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError:
        with contextlib.suppress(OSError):  # closing writes again
            file.close()
        raise
    return file


def _unusable(folder: Path, error: OSError) -> StartupError:
    return StartupError(f"--data-dir {folder} cannot be used: {error.strerror}; choose another")


def _close_to_others(folder: Path) -> None:
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    for name, rights in (*((name, 0o600) for name in _FILES), *((name, 0o700) for name in _FOLDERS)):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # of another user's file that user decides
            # What a link leads to was not made here.
            if not (folder / name).is_symlink() and is_open_to_others(folder / name):
                (folder / name).chmod(rights)
    if is_open_to_others(folder):
        log.warning(
            "other users may enter the data folder; what the server makes in it is closed to them",
            data_dir=str(folder),
            hint=f"chmod 700 {folder}",
        )


def _taken(ports: Iterable[tuple[str, Address]]) -> StartupError | None:
    """Say which port cannot be listened on; None when all can."""
    for option, address in ports:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                # As whoever listens there later: one that has just ended is in nobody's way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address.host, address.port))
                probe.listen()
        except OSError as error:
            return address.cannot_be_taken(error.strerror, option)
    return None
