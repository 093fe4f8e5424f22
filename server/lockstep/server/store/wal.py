"""Whether SQLite has found all of its write-ahead log again.

SQLite reads the log up to the first frame that is damaged and says nothing of the rest. How many frames were committed
stands in the index beside it, which outlives a process that was killed: when fewer were found, what was acknowledged
is gone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

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


def committed_frames(path: Path) -> Committed | None:
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


def lost_frames(before: Committed | None, frames: int) -> int:
    """Count the frames that were committed and not found again.

    Args:
        before: what the index said.
        frames: how many SQLite has found.
    """
    return max(0, before.frames - frames) if before is not None else 0
