"""The log of one job on disk: segments of records, each what one call of a worker brought. Everything here blocks.

A segment is named after the number of its first line, counted over the whole job; the oldest is removed when all are
more than is allowed. A record is a header and a serialized ReportLogsRequest, so that a restart can learn from the
headers alone what is stored, and a reader can pass over what is older than it wants.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lockstep.v1.internal_service_pb2 import ReportLogsRequest

SEGMENTS = 16
_SUFFIX = ".log"
# Size and CRC-32 of the payload, lines, attempt, worker, its position behind the lines, time of the last line in µs.
_HEADER = struct.Struct("<IIIiiIqq")


class Header(NamedTuple):
    """What stands before a record."""

    size_bytes: int
    checksum: int
    lines: int
    attempt: int
    number: int
    spool: int
    end: int
    time_us: int


class Place(NamedTuple):
    """Where a reader stands.

    Attributes:
        line: number of the next line.
        segment: number of the first line of its segment.
        offset: of its record there, in bytes.
    """

    line: int = 0
    segment: int = 0
    offset: int = 0


class Record(NamedTuple):
    """A record, where the next one begins, and what it holds: nothing for one that was passed over."""

    place: Place
    next: Place
    request: ReportLogsRequest | None


class JobLog:
    """Appends to the log of one job; used by one thread at a time."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Find out what is there.

        Raises:
            OSError: it cannot be read, or what an unclean end has left cannot be cut off.
        """
        self._folder, self._limit_bytes = folder, limit_bytes
        self._ends: dict[tuple[int, int, int], int] = {}
        self._sizes: dict[int, int] = {}  # of the segments, by their first lines, in order
        self._next_line = 0
        for first in segments_of(folder):
            self._next_line, self._sizes[first] = first, 0
            for _, header in _headers(_path(folder, first)):
                self._next_line += header.lines
                self._sizes[first] += _HEADER.size + header.size_bytes
                self._remember((header.attempt, header.number, header.spool), header.end)
            os.truncate(_path(folder, first), self._sizes[first])  # a record that was not written whole

    def append(self, request: ReportLogsRequest) -> int:
        """Store the lines that are new.

        Returns:
            How many that were.
        """
        source = request.attempt, request.number, request.spool
        known = self._ends.get(source, 0)
        if stored := bisect_right(request.ends, known):  # lines that come again
            del request.lines[:stored]
            del request.ends[:stored]
        if not request.lines:
            return 0
        for line in request.lines:
            line.attempt, line.worker = request.attempt, request.number
        self._write(request)
        self._remember(source, request.ends[-1])
        return len(request.lines)

    def _write(self, request: ReportLogsRequest) -> None:
        payload = request.SerializeToString()
        time_us = request.lines[-1].time.ToMicroseconds()
        header = Header(
            len(payload),
            zlib.crc32(payload),
            len(request.lines),
            request.attempt,
            request.number,
            request.spool,
            request.ends[-1],
            time_us,
        )
        data = _HEADER.pack(*header) + payload
        self._make_room(len(data))
        newest = next(reversed(self._sizes))
        path = _path(self._folder, newest)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if os.pwrite(descriptor, data, self._sizes[newest]) < len(data):
                os.ftruncate(descriptor, self._sizes[newest])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(descriptor)
        self._sizes[newest] += len(data)
        self._next_line += len(request.lines)

    def _make_room(self, size_bytes: int) -> None:
        """Begin a new segment if the newest has grown large, and remove the oldest if all would be too large."""
        newest_bytes = next(reversed(self._sizes.values()), 0)
        if not self._sizes or (newest_bytes and newest_bytes + size_bytes > self._limit_bytes // SEGMENTS):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sizes[self._next_line] = 0
        while len(self._sizes) > 1 and sum(self._sizes.values()) + size_bytes > self._limit_bytes:
            oldest = next(iter(self._sizes))
            _path(self._folder, oldest).unlink(missing_ok=True)
            del self._sizes[oldest]

    def _remember(self, source: tuple[int, int, int], end: int) -> None:
        self._ends[source] = max(end, self._ends.get(source, 0))


def segments_of(folder: Path) -> list[int]:
    """Numbers of the first lines of a job's segments, in order; none when it has no log."""
    try:
        return sorted(int(path.stem) for path in folder.iterdir() if path.suffix == _SUFFIX)
    except FileNotFoundError:
        return []


def read_records(folder: Path, place: Place, since_us: int = 0) -> Iterator[Record]:
    """Yield the records from a place on; those that end before a time are passed over.

    When the place is gone, the first record is from further on: its number tells how many lines are missing.
    """
    segments = segments_of(folder)
    for first in segments:
        is_later = first > place.segment
        if first < place.segment:
            continue
        here = Place(first, first, 0) if is_later else place
        try:
            with _path(folder, first).open("rb") as file:
                for offset, header in _headers(_path(folder, first), here.offset):
                    after = Place(here.line + header.lines, first, offset + _HEADER.size + header.size_bytes)
                    request = None
                    if header.time_us >= since_us:
                        file.seek(offset + _HEADER.size)
                        payload = file.read(header.size_bytes)
                        if zlib.crc32(payload) == header.checksum:  # else the disk has damaged it
                            request = ReportLogsRequest.FromString(payload)
                    yield Record(here, after, request)
                    here = after
        except FileNotFoundError:  # removed meanwhile
            continue


def _headers(path: Path, offset: int = 0) -> Iterator[tuple[int, Header]]:
    """Yield the headers of a segment's whole records from an offset on, with the offset of each."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        while offset + _HEADER.size <= size_bytes:
            file.seek(offset)
            header = Header(*_HEADER.unpack(file.read(_HEADER.size)))
            if not header.lines or offset + _HEADER.size + header.size_bytes > size_bytes:
                return
            yield offset, header
            offset += _HEADER.size + header.size_bytes


def _path(folder: Path, first_line: int) -> Path:
    return folder / f"{first_line:015}{_SUFFIX}"
