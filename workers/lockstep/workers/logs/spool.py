"""The file on a node that a worker prints into, and a note beside it that says what of it has arrived.

A file and not a pipe: writing to it never waits for a reader, and what was written survives the writer, however that
ended. Its front is given back to the file system as it is delivered, by punching a hole: positions in it stay the
number of bytes ever printed, and nobody who prints meanwhile is in the way.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

MARK = b"\x1e"
"""Begins a line that is not printed text but says which rank the worker has from there on."""
UNFINISHED_S = 3600.0
"""How long a file may be without a note before it counts as left over."""
KEEP_SIZE_AND_PUNCH_HOLE = 1 | 2

BASE = Path(tempfile.gettempdir()) / f"lockstep-logs-{os.getuid()}"


class Gap(NamedTuple):
    """A part of a spool that is not delivered.

    Attributes:
        start: position of its first byte.
        end: position behind its last.
        lines: how many it held.
        rank: that the worker has behind it.
        why: it was dropped, in words.
    """

    start: int
    end: int
    lines: int
    rank: int | None
    why: str


@dataclass(frozen=True)
class Label:
    """Whose spool it is: the job, the attempt and its token, and the number of the worker in it."""

    job_id: str
    attempt: int
    number: int
    token: str


@dataclass(frozen=True)
class State:
    """How far a spool is delivered.

    Attributes:
        position: bytes before it have arrived.
        rank: that the worker had there.
        gap: is left out when delivery comes to it.
    """

    position: int = 0
    rank: int | None = None
    gap: Gap | None = None


def folder_of(namespace: str) -> Path:
    """The folder of the spools of one server's workers on this node."""
    return BASE / namespace


@dataclass
class Spool:
    """A spool and its note, both open, and locked for as long as this process has them open.

    Attributes:
        label: whose it is.
        state: what of it has arrived.
        data: descriptor of the file itself.
        path: of the file itself.
    """

    label: Label
    state: State
    data: int
    _note: int
    path: Path
    _is_open: bool = field(default=True, init=False)

    @property
    def key(self) -> int:
        """What is like no other spool's, of the same worker neither."""
        return int(self.path.suffix.removeprefix("."), 16)

    @classmethod
    def create(cls, folder: Path, label: Label) -> Self:
        """Make an empty one.

        Raises:
            OSError: it cannot be made, or others could read it.
        """
        BASE.mkdir(mode=0o700, exist_ok=True)
        about = BASE.stat(follow_symlinks=False)
        if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o077:
            raise PermissionError(f"{BASE} is not a folder of this user alone; remove it")
        path = folder / f"{label.job_id}.{label.attempt}.{label.number}.{secrets.token_hex(4)}"
        draft = path.with_suffix(f"{path.suffix}.draft")
        with contextlib.ExitStack() as undo:  # a full disk keeps neither files nor descriptors
            undo.callback(_remove_if_empty, folder)
            undo.callback(draft.unlink, missing_ok=True)
            note = _open_in(folder, draft)
            undo.callback(os.close, note)
            fcntl.flock(note, fcntl.LOCK_EX)
            undo.callback(path.unlink, missing_ok=True)
            data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            undo.callback(os.close, data)
            spool = cls(label, State(), data, note, path)
            spool.save(State())
            draft.rename(_note_of(path))  # nobody ever sees a note that is not locked or not whole
            undo.pop_all()
        return spool

    @classmethod
    def orphans(cls, folder: Path) -> Iterator[Self]:
        """Those whose process is gone, one after another; each is locked until it is closed.

        Those of one job come together; of the jobs another one comes first each time, so that none always waits.
        """
        _remove_unfinished(folder)
        salt = secrets.token_bytes(4)
        notes = folder.glob("*.json")
        for note_path in sorted(notes, key=lambda path: (zlib.crc32(salt + _job_of(path).encode()), path.name)):
            path = note_path.with_suffix("")
            try:
                note = os.open(note_path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                told = json.loads(os.pread(note, os.fstat(note).st_size, 0))
                told["gap"] = Gap(*told["gap"]) if told["gap"] else None
                label = Label(**{name: told.pop(name) for name in ("job_id", "attempt", "number", "token")})
                state = State(**told)
                data = os.open(path, os.O_RDWR | os.O_APPEND)
            except OSError:  # somebody has it, or has just removed it
                os.close(note)
                continue
            except (ValueError, KeyError, TypeError):  # the disk has damaged it, or another version has written it
                note_path.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                os.close(note)
                _remove_if_empty(folder)
                continue
            yield cls(label, state, data, note, path)

    def save(self, state: State) -> None:
        """Write down what has arrived; a process that is killed meanwhile leaves the old note or the new one."""
        self.state = state
        text = json.dumps(asdict(self.label) | asdict(state)).encode()
        os.pwrite(self._note, text.ljust(os.fstat(self._note).st_size), 0)

    def mark_rank(self, rank: int) -> None:
        """From here on the worker has this rank."""
        os.write(self.data, MARK + json.dumps({"rank": rank}).encode() + b"\n")

    def free(self, start: int, end: int) -> bool:
        """Give what lies between two positions back to the file system; False when it cannot do that."""
        if end <= start:
            return True
        return sys.platform == "linux" and _fallocate(self.data, KEEP_SIZE_AND_PUNCH_HOLE, start, end - start) == 0

    def hole(self, position: int) -> tuple[int, int] | None:
        """Start and end of the first part from a position on that the file system does not hold, if there is one."""
        size = self.size()
        try:
            start = os.lseek(self.data, position, os.SEEK_HOLE)  # who writes appends, wherever that leads
        except OSError:  # the file system cannot tell
            return None
        if start >= size:  # every file ends with one
            return None
        try:
            return start, os.lseek(self.data, start, os.SEEK_DATA)
        except OSError:  # nothing else is left
            return start, size

    def size(self) -> int:
        """Bytes ever printed."""
        return os.fstat(self.data).st_size

    def printed_at(self) -> float:
        """When something was printed last, as time.time() tells."""
        return os.fstat(self.data).st_mtime

    def remove(self) -> None:
        """Remove both files: all has arrived, or nobody wants it. Closes them."""
        _note_of(self.path).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.close()
        _remove_if_empty(self.path.parent)

    def close(self) -> None:
        """Leave both files to whoever comes next."""
        if self._is_open:
            self._is_open = False
            fcntl.flock(self._note, fcntl.LOCK_UN)  # a process that was forked from this one has it open too
            os.close(self._note)
            os.close(self.data)


def _open_in(folder: Path, path: Path) -> int:
    """Make a file; again when whoever removed the last one before has just removed the folder too."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # others lie in it
        folder.rmdir()


def _remove_unfinished(folder: Path) -> None:
    """Remove files without a note: their process died while it made or removed them, some time ago."""
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            is_old = time.time() - path.stat().st_mtime > UNFINISHED_S
            if is_old and path.suffix != ".json" and not _note_of(path).exists():
                path.unlink()
                _remove_if_empty(folder)


def _note_of(path: Path) -> Path:
    return path.with_suffix(f"{path.suffix}.json")


def _job_of(note: Path) -> str:
    return note.name.rsplit(".", 4)[0]


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> int:
    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    result: int = call(descriptor, mode, start, length)
    return result
