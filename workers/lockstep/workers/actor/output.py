"""What a worker prints and logs while it works for a job."""

import contextlib
import ctypes
import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import structlog

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.logs.shipper import Shipper
from lockstep.workers.logs.spool import Label, Spool
from lockstep.workers.logs.times import PrintTimes

LOGGER = "lockstep"
"""Name of the logger for what a job's people want to know."""

log = structlog.get_logger()


class WorkerLog:
    """From `begin` to `end` all that this process prints goes to the job's log; only one of them at a time.

    A node without room for a log does not keep a job from running: then it goes where it went before.

    Args:
        order: the job, its attempt, where the coordinator is and the token for it.
        number: of the worker in the attempt.
        folder: of the spools.
    """

    def __init__(self, order: StartGang, number: int, folder: Path) -> None:
        self._order, self._folder = order, folder
        self._label = Label(order.job_id, order.attempt, number, order.attempt_token)
        self._spool: Spool | None = None
        self._shipper: Shipper | None = None
        self._put_back: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Take up what is printed from now on, and deliver it from a thread."""
        spool: Spool | None = None
        try:
            spool = Spool.create(self._folder, self._label)
            times = PrintTimes()
            self._shipper = Shipper(spool, lambda: self._order.coordinator_address, times)
            self._put_back = capture(spool.data, times)
            self._shipper.start()
            self._spool = spool
        except Exception as error:  # no room, no descriptor, no thread
            if self._put_back is not None:
                self._put_back()
                self._put_back = None
            if spool is not None:
                with contextlib.suppress(OSError):
                    spool.remove()
            log.warning("what the worker prints is not kept", job_id=self._label.job_id, error=str(error))

    def mark_rank(self, rank: int) -> None:
        """What comes from now on is printed by this rank."""
        with self._lock, contextlib.suppress(OSError):  # the disk may be full
            if self._spool is not None:
                self._spool.mark_rank(rank)

    def end(self, patience_s: float) -> bool:
        """Print again where it was printed before, and deliver what there is, within a time.

        Returns:
            False when something is left for a sweep.
        """
        if self._put_back is None or self._shipper is None:
            return True
        self._shipper.let_go()
        self._put_back()
        with self._lock:
            self._spool = None
        return self._shipper.close(patience_s)


def capture(descriptor: int, times: PrintTimes) -> Callable[[], None]:
    """Send what this process prints to a file, whoever prints: Python, a library, a child process.

    Args:
        descriptor: of the file.
        times: is told when Python has printed what.

    Returns:
        Puts everything back as it was.

    Raises:
        OSError: no descriptor is free; everything is as it was.
    """
    _flush()
    streams = (sys.stdout, sys.stderr)
    saved: list[int] = []

    def put_back() -> None:
        _flush()
        for number, before in zip((1, 2), saved, strict=False):
            os.dup2(before, number)
            os.close(before)
        sys.stdout, sys.stderr = streams

    try:
        saved.extend(map(os.dup, (1, 2)))
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = _stream(1, times), _stream(2, times)
    except BaseException:
        put_back()
        raise
    return put_back


def configure_logger() -> None:
    """Have `logging.getLogger("lockstep")` write to standard error, wherever that goes."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Asks for sys.stderr at every record."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """What the base class was given is of no interest."""


class _Lossy(io.FileIO):
    """A file that loses what it has no room for: a full disk must not end a job that prints.

    Args:
        number: its descriptor.
        times: is told of each write.
    """

    def __init__(self, number: int, times: PrintTimes) -> None:
        super().__init__(number, "w", closefd=False)
        self._times = times

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
            self._times.note(os.fstat(self.fileno()).st_size)
        except OSError:
            return len(data)
        return written


def _stream(number: int, times: PrintTimes) -> TextIO:
    """A text stream over a descriptor that writes every line at once."""
    file = _Lossy(number, times)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush() -> None:
    """Write what Python and C hold back."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # whatever a job has put there
            stream.flush()
    ctypes.CDLL(None).fflush(None)
