"""The logs of all jobs: written and read in threads of their own, so that a slow disk holds nothing else up.

A call of a worker is answered when its lines are stored. A worker has one call under way, so what waits is bounded by
the number of workers, and a worker that prints faster than the disk writes drops lines on its own side.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.contract.wording import count, were
from lockstep.server.errors import LogNotStored
from lockstep.server.logs.files import Header, JobLog, Position, Record, read_records, segments_of
from lockstep.server.watching.notifier import Notifier
from lockstep.v1.internal_service_pb2 import ReportLogsRequest
from lockstep.v1.log_service_pb2 import LogLine

T = TypeVar("T")

_THREADS = 4
_OPEN_LOGS = 256
_BATCH_LINES = 2_000
_BATCH_BYTES = 256 << 10
_TAIL_LINES = 250

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Wanted:
    """Which lines of a job.

    Attributes:
        rank: only those of this rank; None for all.
        since: only those from this time on; None for all.
    """

    rank: int | None = None
    since: datetime | None = None

    def select(self, request: ReportLogsRequest) -> list[LogLine]:
        """Those among the lines of a record."""
        lines = list(request.lines)
        if self.rank is not None:
            lines = [line for line in lines if line.HasField("rank") and line.rank == self.rank]
        if self.since is not None:
            since_us = self.since_us
            lines = [line for line in lines if line.time.ToMicroseconds() >= since_us]
        return lines

    @property
    def since_us(self) -> int:
        if self.since is None:
            return 0
        moment = Timestamp()
        moment.FromDatetime(self.since)
        return moment.ToMicroseconds()


@dataclass
class _OpenLog:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    log: JobLog | None = None
    users: int = 0
    is_failing: bool = False


class LogStore:
    """What the workers of all jobs have printed.

    Attributes:
        notifier: wake who follows the log of a job.
    """

    def __init__(self, folder: Path, bytes_per_job: int) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            folder: with a folder for each job that has printed something.
            bytes_per_job: the most that the log of one job takes.
        """
        self.notifier = Notifier()
        self._folder, self._bytes_per_job = folder, bytes_per_job
        self._open: OrderedDict[str, _OpenLog] = OrderedDict()
        self._writing = ThreadPoolExecutor(_THREADS, thread_name_prefix="log-writer")
        self._reading = ThreadPoolExecutor(_THREADS, thread_name_prefix="log-reader")

    def close(self) -> None:
        """Write what has been taken, and read no more."""
        self._writing.shutdown()
        self._reading.shutdown(cancel_futures=True)

    async def append(self, request: ReportLogsRequest) -> None:
        """Store what a worker has printed; lines that are stored already are dropped.

        Raises:
            LogNotStored: the disk is full, or worse.
        """
        opened = self._open.setdefault(request.job_id, _OpenLog())
        self._open.move_to_end(request.job_id)
        opened.users += 1
        try:
            is_new = await self._alone(opened, self._append, opened, request)
        finally:
            opened.users -= 1
            self._close_some()
        if is_new:
            self.notifier.notify(request.job_id)

    async def _alone(self, opened: _OpenLog, work: Callable[..., T], *args: Any) -> T:
        """Write to a log: one thing at a time in that of one job; those of other jobs are written meanwhile."""
        async with opened.lock:
            written = asyncio.get_running_loop().run_in_executor(self._writing, work, *args)
            try:
                return await asyncio.shield(written)
            except asyncio.CancelledError:
                await asyncio.wait([written])  # the next must not begin before
                raise

    def _append(self, opened: _OpenLog, request: ReportLogsRequest) -> int:
        try:
            if opened.log is None:
                opened.log = JobLog(self._folder / request.job_id, self._bytes_per_job)
            stored = opened.log.append(request)
        except OSError as error:
            if not opened.is_failing:  # once, not with every try
                log.error("a job's log cannot be written", job_id=request.job_id, error=str(error))
            opened.is_failing = True
            raise LogNotStored(f"the log of job {request.job_id} cannot be written: {error.strerror}") from error
        if opened.is_failing:
            log.info("a job's log can be written again", job_id=request.job_id)
            opened.is_failing = False
        return stored

    def _close_some(self) -> None:
        """Forget those that nobody has written to for long; they are read again when that changes."""
        for job_id in [job_id for job_id, opened in self._open.items() if not opened.users]:
            if len(self._open) <= _OPEN_LOGS:
                return
            del self._open[job_id]

    async def forget(self, job_id: str) -> None:
        """Remove the log of a job that was deleted, after what is being written to it."""
        opened = self._open.setdefault(job_id, _OpenLog())
        opened.users += 1
        try:
            await self._alone(opened, self._remove, opened, job_id)
        finally:
            opened.users -= 1
            if not opened.users:
                self._open.pop(job_id, None)

    def _remove(self, opened: _OpenLog, job_id: str) -> None:
        opened.log = None
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    async def forget_all_but(self, known: Callable[[list[str]], Awaitable[set[str]]]) -> None:
        """Remove the logs that servers before have left of jobs that were deleted.

        Args:
            known: tells which of some job_ids are those of jobs.
        """
        loop = asyncio.get_running_loop()
        there = await loop.run_in_executor(self._writing, _jobs_in, self._folder)
        for job_id in set(there) - await known(there):
            await self.forget(job_id)

    async def read(
        self, job_id: str, place: Position, wanted: Wanted, make: Callable[[list[LogLine], Position], T]
    ) -> T:
        """Read some of the lines from a place on; a place before the oldest line that is kept gives a notice first.

        Returns:
            What `make` makes of them and of the place behind them, in the reader's thread. At the end of what there is
            that place is the same.
        """

        def run() -> T:
            return make(*self._read_some(job_id, place, wanted))

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    def _read_some(self, job_id: str, place: Position, wanted: Wanted) -> tuple[list[LogLine], Position]:
        lines: list[LogLine] = []
        size_bytes = 0
        for record in read_records(self._folder / job_id, place, wanted.since_us):
            place = record.next
            lines += self._lines_of(record, wanted)
            if record.request is not None:
                size_bytes += record.size_bytes
            if len(lines) >= _BATCH_LINES or size_bytes >= _BATCH_BYTES:
                break
        return lines, place

    def _lines_of(self, record: Record, wanted: Wanted) -> list[LogLine]:
        """Those of a record, after a word on what is missing before them."""
        lines: list[LogLine] = []
        if record.header is None or record.header.time_us >= wanted.since_us:  # else it is older than what is wanted
            if record.removed:
                limit = f"the log of a job may take {self._bytes_per_job:,} bytes (--log-bytes-per-job)"
                lines.append(_notice(f"{were(record.removed, 'line')} dropped here: {limit}", record.header))
            if record.damaged:
                how_many = count(record.damaged, "line") if record.header is not None else "lines"
                lines.append(
                    _notice(f"{how_many} cannot be read here: the server's disk has damaged them", record.header)
                )
        return lines + (wanted.select(record.request) if record.request is not None else [])

    async def tail(self, job_id: str, count: int, wanted: Wanted) -> list[tuple[list[LogLine], Position]]:
        """The last `count` lines in parts, each with the place behind it; the last part may be empty."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, self._tail, job_id, count, wanted)

    def _tail(self, job_id: str, count: int, wanted: Wanted) -> list[tuple[list[LogLine], Position]]:
        folder = self._folder / job_id
        parts: list[tuple[list[LogLine], Position]] = []
        end: Position | None = None
        missing = count
        for first in reversed(segments_of(folder)):
            after = Position(first, first, 0)
            newer: deque[tuple[list[LogLine], Position]] = deque()
            found = 0
            for record in read_records(folder, after, wanted.since_us):
                if record.next.segment != first:
                    break
                after = record.next
                lines = self._lines_of(record, wanted)
                newer.append((lines, after))
                found += len(lines)
                while newer and found - len(newer[0][0]) >= missing:
                    found -= len(newer.popleft()[0])
            if found > missing:
                lines, place = newer[0]
                newer[0] = (lines[found - missing :], place)
            parts = [*newer, *parts]
            missing -= min(found, missing)
            end = end or after
            if not missing:
                break
        return _joined(parts, end or Position())


def _jobs_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.glob("job-*") if path.is_dir()]
    except OSError:  # there is none yet, or who prints is told why it cannot be used
        return []


def _joined(parts: list[tuple[list[LogLine], Position]], end: Position) -> list[tuple[list[LogLine], Position]]:
    """The same lines in parts that are worth a message."""
    joined: list[tuple[list[LogLine], Position]] = []
    for lines, place in parts:
        if joined and len(joined[-1][0]) + len(lines) <= _TAIL_LINES:
            joined[-1] = (joined[-1][0] + lines, place)
        else:
            joined.append((lines, place))
    return [*joined, ([], end)]


def _notice(words: str, header: Header | None) -> LogLine:
    if header is None:
        return LogLine(text=words, is_notice=True)
    line = LogLine(attempt=header.attempt, worker=header.number, text=words, is_notice=True)
    line.time.FromMicroseconds(header.time_us)
    return line
