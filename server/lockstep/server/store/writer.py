"""The one writer: requests that arrive together share one commit, and so one wait for the disk."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Connection, Engine, delete, insert

from lockstep.server.store import tables
from lockstep.server.store.dialect import Transaction, is_of_the_store
from lockstep.server.store.errors import StoreError, why_unwritable

T = TypeVar("T")
Operation = Callable[[Connection], T]

MAX_GROUP = 512
_LONGEST_GATHER_S = 0.001
_TRIAL_BYTES = 1 << 16

log = structlog.get_logger(__name__)


@dataclass
class _Request(Generic[T]):
    operation: Operation[T]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    outcome: T | None = None
    error: Exception | None = None

    def tell(self) -> None:
        if self.future.done():  # The caller has been cancelled meanwhile.
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.outcome)  # type: ignore[arg-type]


class Writer:
    """A thread that owns the only connection that writes. It serves one event loop."""

    def __init__(self, engine: Engine, folder: Path, committed: Callable[[int, float], None]) -> None:
        self._engine, self._folder, self._committed = engine, folder, committed
        self._is_failing = False
        self._gathered: list[_Request[Any]] = []
        self._requests: queue.SimpleQueue[list[_Request[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lockstep-store-writer", daemon=True)
        self._closed = False
        self._thread.start()

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction; return when it is on disk.

        An operation that raises changes nothing, and hurts none of those that share its commit. What is asked for is
        written even when the caller goes away.

        Raises:
            StoreUnwritable: the disk is full, or worse; nothing of what shared the transaction is stored.
        """
        if self._closed:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        request = _Request(operation, loop, loop.create_future())
        if not self._gathered:  # Those that come in the same turn of the loop go together: waking a thread is dear.
            loop.call_soon(self._hand_over)
        self._gathered.append(request)
        outcome: T = await request.future
        return outcome

    async def try_out(self) -> None:
        """Find out whether it can write: by a change while it could not, since nobody else may come with one.

        Raises:
            StoreUnwritable: it cannot.
        """
        await self.write(_change_something if self._is_failing else _change_nothing)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._requests.put(gathered)

    def close(self) -> None:
        """Write what is queued, then end the thread."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._requests.put(None)
            self._thread.join()

    def _run(self) -> None:
        with self._engine.connect() as connection:
            gather_s = 0.0
            while (group := self._requests.get()) is not None:
                if gather_s:
                    time.sleep(gather_s)
                ends = False
                while len(group) < MAX_GROUP:
                    try:
                        more = self._requests.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        ends = True
                        break
                    group += more
                began = time.perf_counter()
                has_changed = self._write_group(connection, group)
                took_s = time.perf_counter() - began
                if has_changed:
                    self._committed(len(group), took_s)
                self._tell(group)
                # Where several came together others are on their way: waiting for them is cheaper than one more commit.
                gather_s = min(took_s / 4, _LONGEST_GATHER_S) if len(group) > 1 else 0.0
                if ends:
                    break

    def _write_group(self, connection: Connection, group: list[_Request[Any]]) -> bool:
        """Write what shares a commit; says whether that has changed anything."""
        try:
            with connection.begin():
                transaction = Transaction(connection)
                for request in group:
                    self._run_one(connection, transaction, request)
                has_changed = transaction.has_changed
        except Exception as error:
            trouble = why_unwritable(error, self._folder)
            if not self._is_failing:  # once, not with every try
                log.error("nothing can be stored", error=trouble.message)
            self._is_failing = True
            for request in group:
                request.error = type(trouble)(trouble.message)
            return False
        if self._is_failing and has_changed:  # a full disk takes what changes nothing
            log.info("the store can be written again")
            self._is_failing = False
        return has_changed

    @staticmethod
    def _run_one(connection: Connection, transaction: Transaction, request: _Request[Any]) -> None:
        transaction.begin_change()
        try:
            request.outcome = request.operation(connection)
        except Exception as error:
            request.error = error
            if is_of_the_store(error) or not transaction.goes_on:
                raise
            transaction.undo_change()
        else:
            transaction.end_change()

    @staticmethod
    def _tell(group: list[_Request[Any]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Request[Any]]] = {}
        for request in group:
            by_loop.setdefault(request.loop, []).append(request)
        for loop, requests in by_loop.items():
            try:
                loop.call_soon_threadsafe(_tell_all, requests)
            except RuntimeError:
                log.warning("nobody is left to hear of writes", writes=len(requests))


def _change_nothing(connection: Connection) -> None:
    pass


def _change_something(connection: Connection) -> None:
    # Of some pages, so that it does not fit where the next job would not.
    trial = {"key": "trial", "value": "-" * _TRIAL_BYTES}
    connection.execute(insert(tables.meta).values(trial))
    connection.execute(delete(tables.meta).where(tables.meta.c.key == "trial"))


def _tell_all(requests: list[_Request[Any]]) -> None:
    for request in requests:
        request.tell()
