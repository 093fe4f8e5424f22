"""The log of one job on disk: segments of records, each what one call of a worker brought. Everything here blocks.

A segment is named after the number of its first line, counted over the whole job; the oldest is removed when all are
more than is allowed. A record is a header and a serialized ReportLogsRequest, so that a restart can learn from the
headers alone what is stored, and a reader can pass over what is older than it wants. Where the disk has damaged
something, whoever reads goes on at the next whole header, whose number of the first line tells how much is missing.
A file in which a restart finds such damage is left as it is, and a new one is begun.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lockstep.v1.internal_service_pb2 import ReportLogsRequest

SEGMENTS = 16
_SUFFIX = ".log"
_MAGIC = b"LSLOG\0\0\2"
"""Begins a segment; the last byte is the version of what follows."""
_MARK = b"\xfeLSR"
"""Begins a record."""
_SCAN_BYTES = 1 << 20
# Size and CRC-32 of the payload, lines, attempt, worker, spool, number of the first line, position in the spool behind
# the last, time of that in µs. Before it stand the mark and the CRC-32 of the header itself.
_HEADER = struct.Struct("<IIIiiIqqq")
_SEAL = struct.Struct("<4sI")
_HEADER_BYTES = _SEAL.size + _HEADER.size


class Header(NamedTuple):
    """What stands before a record."""

    size_bytes: int
    checksum: int
    lines: int
    attempt: int
    number: int
    spool: int
    line: int
    end: int
    time_us: int

    def packed(self) -> bytes:
        data = _HEADER.pack(*self)
        return _SEAL.pack(_MARK, zlib.crc32(data)) + data

    @classmethod
    def unpacked(cls, data: bytes) -> Header | None:
        """What was packed; None when it is damaged."""
        mark, checksum = _SEAL.unpack_from(data)
        about = data[_SEAL.size : _HEADER_BYTES]
        return cls(*_HEADER.unpack(about)) if mark == _MARK and zlib.crc32(about) == checksum else None


class Found(NamedTuple):
    """What a segment holds at an offset: a whole record, or with None damage that goes on to the end of the file."""

    offset: int
    end: int
    header: Header | None


class Position(NamedTuple):
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
    """A record.

    Attributes:
        next: where the next one begins.
        header: of this one; None where only damage was found.
        request: what it holds; None when it was passed over or is damaged.
        removed: lines before it that were removed to make room.
        damaged: lines before it or in it that cannot be read, as far as is known.
        size_bytes: what of the file it takes.
    """

    next: Position
    header: Header | None
    request: ReportLogsRequest | None
    removed: int = 0
    damaged: int = 0
    size_bytes: int = 0


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
        self._is_newest_damaged = False
        for first in segments_of(folder):
            self._look_at(first)

    def _look_at(self, first: int) -> None:
        self._next_line, self._sizes[first], self._is_newest_damaged = first, 0, False
        path = _path(self._folder, first)
        with path.open("rb") as file:
            for offset, end, header in _records(file):
                if header is None:
                    self._next_line += 1  # at least: the next segment must not get the name of this one
                else:
                    self._next_line = header.line + header.lines
                    self._remember((header.attempt, header.number, header.spool), header.end)
                self._is_newest_damaged |= header is None or offset != (self._sizes[first] or len(_MAGIC))
                self._sizes[first] = end
        if not self._is_newest_damaged:
            os.truncate(path, self._sizes[first])  # a record that was not written whole

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
        header = Header(
            size_bytes=len(payload),
            checksum=zlib.crc32(payload),
            lines=len(request.lines),
            attempt=request.attempt,
            number=request.number,
            spool=request.spool,
            line=self._next_line,
            end=request.ends[-1],
            time_us=request.lines[-1].time.ToMicroseconds(),
        )
        data = header.packed() + payload
        self._make_room(len(_MAGIC) + len(data))
        newest = next(reversed(self._sizes))
        if not self._sizes[newest]:
            data = _MAGIC + data
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
        is_full = newest_bytes and newest_bytes + size_bytes > self._limit_bytes // SEGMENTS
        if not self._sizes or is_full or self._is_newest_damaged:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sizes[self._next_line] = 0
            self._is_newest_damaged = False
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


def read_records(folder: Path, place: Position, since_us: int = 0) -> Iterator[Record]:
    """Yield the records from a place on; those that end before a time are passed over."""
    segments = segments_of(folder)
    is_gone = place.segment not in segments  # removed to make room, and so are all before the next one
    here = place
    for first in segments:
        if first < place.segment:
            continue
        if first > here.segment:
            here = Position(here.line, first, 0)
        try:
            with _path(folder, first).open("rb") as file:
                for offset, end, header in _records(file, here.offset):
                    line = header.line if header is not None else max(here.line, first)
                    missing = max(0, line - here.line)
                    request, damaged = None, 0 if is_gone else missing
                    if header is None:
                        damaged += 1  # at least
                        after = Position(line + 1, first, end)
                    else:
                        after = Position(line + header.lines, first, end)
                        if header.time_us >= since_us:
                            request = _payload(file, offset, header)
                            damaged += 0 if request is not None else header.lines
                    yield Record(after, header, request, missing if is_gone else 0, damaged, end - offset)
                    here, is_gone = after, False
        except FileNotFoundError:  # removed meanwhile
            is_gone = True


def _payload(file: BinaryIO, offset: int, header: Header) -> ReportLogsRequest | None:
    file.seek(offset + _HEADER_BYTES)
    payload = file.read(header.size_bytes)
    return ReportLogsRequest.FromString(payload) if zlib.crc32(payload) == header.checksum else None


def _records(file: BinaryIO, offset: int = 0) -> Iterator[Found]:
    """Yield the whole records of a segment from an offset on.

    Damage is passed over. Only one that goes on to the end is told, and what was not written whole is none.
    """
    size_bytes = os.fstat(file.fileno()).st_size
    if not offset:
        file.seek(0)
        offset = len(_MAGIC) if _MAGIC.startswith(file.read(len(_MAGIC))) else 0
    while offset < size_bytes:
        file.seek(offset)
        data = file.read(_HEADER_BYTES)
        header = Header.unpacked(data) if len(data) == _HEADER_BYTES else None
        if len(data) < _HEADER_BYTES and _MARK.startswith(data[: len(_MARK)]):
            return  # cut off
        if header is None:
            later = _next_header(file, offset + 1, size_bytes)
            if later is None:
                yield Found(offset, size_bytes, None)
                return
            offset = later
            continue
        end = offset + _HEADER_BYTES + header.size_bytes
        if end > size_bytes:
            return
        yield Found(offset, end, header)
        offset = end


def _next_header(file: BinaryIO, offset: int, end: int) -> int | None:
    """Where the next whole header begins, if there is one."""
    while offset < end:
        file.seek(offset)
        data = file.read(_SCAN_BYTES + _HEADER_BYTES - 1)
        found = data.find(_MARK)
        while 0 <= found <= len(data) - _HEADER_BYTES:
            if Header.unpacked(data[found : found + _HEADER_BYTES]) is not None:
                return offset + found
            found = data.find(_MARK, found + 1)
        offset += _SCAN_BYTES
    return None


def _path(folder: Path, first_line: int) -> Path:
    return folder / f"{first_line:015}{_SUFFIX}"
