"""Threads for work that may hang: it holds up nobody else, and never the end of this process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import structlog

from lockstep.server.errors import FilesHang, ShuttingDown

T = TypeVar("T")
Work = tuple[Future[Any], Callable[[], Any]]

MOST_THREADS = 32
DEADLINE_S = 30.0

log = structlog.get_logger(__name__)


class FilePool:
    """A bounded number of threads for the files of users, with a deadline for whoever waits.

    Work that hangs cannot be ended. It keeps its thread until it comes back; who waited is told after the deadline.
    When all threads hang, work on files fails after the deadline, and all else goes on. The threads are daemons: a
    process that ends waits for none of them.
    """

    def __init__(self, most_threads: int = MOST_THREADS, deadline_s: float = DEADLINE_S) -> None:
        self._most, self._deadline_s = most_threads, deadline_s
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = self._threads = 0
        self._closed = asyncio.Event()

    async def run(
        self,
        work: Callable[..., T],
        *args: Any,
        what: str,
        drop: Callable[[T], None] | None = None,
        deadline_s: float | None = None,
    ) -> T:
        """Run `work(*args)` in a thread.

        Args:
            work: what to do.
            *args: given to it.
            what: it is, for the error; a sentence's subject such as "reading a.b of job c".
            drop: takes the result, in a thread too, when nobody waits for it any more.
            deadline_s: seconds that it may take, where that is another time than usual.

        Raises:
            FilesHang: it has not come back in time.
            ShuttingDown: the server stops.
        """
        if self._closed.is_set():
            raise ShuttingDown
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        future: Future[T] = Future()
        self._put((future, lambda: work(*args)))
        waiting = asyncio.wrap_future(future)
        closing = asyncio.ensure_future(self._closed.wait())
        is_taken = False
        try:
            done, _ = await asyncio.wait((waiting, closing), timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            is_taken = waiting in done
            if is_taken:
                return waiting.result()
        finally:
            closing.cancel()
            if not is_taken:
                if drop is not None:
                    future.add_done_callback(lambda future: self._drop(future, drop))
                waiting.cancel()
        if done:
            raise ShuttingDown
        raise FilesHang(
            f"{what} has not come to an end after {deadline_s:g} s; the file system may hang, or too many others "
            "of these calls do; try again when it answers"
        )

    def leave(self, work: Callable[[], object]) -> None:
        """Have a piece of work done that nobody waits for, such as closing a file; also when the server stops."""
        future: Future[object] = Future()
        future.add_done_callback(_tell_of_trouble)
        if self._closed.is_set():
            threading.Thread(target=_do, args=(future, work), name="lockstep-files", daemon=True).start()
        else:
            self._put((future, work))

    def _drop(self, future: Future[T], drop: Callable[[T], object]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.leave(partial(drop, future.result()))

    def close(self) -> None:
        """Tell everyone who waits that the server stops, and end the threads that are idle."""
        if not self._closed.is_set():
            self._closed.set()
            with self._lock:
                for _ in range(self._threads):
                    self._work.put(None)

    def _put(self, work: Work) -> None:
        with self._lock:
            self._work.put(work)
            self._unfinished += 1
            if self._unfinished <= self._threads or self._threads >= self._most:
                return
            self._threads += 1
        threading.Thread(target=self._serve, name="lockstep-files", daemon=True).start()

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            _do(*item)
            del item  # and with it the result, while this thread waits
            with self._lock:
                self._unfinished -= 1


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _tell_of_trouble(future: Future[object]) -> None:
    error = future.exception()
    if error is not None:
        log.warning("a file could not be put away", error=f"{type(error).__name__}: {error}")
