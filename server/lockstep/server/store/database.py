"""The database that all parts of the store share: one writer, and readers that never wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection, select

from lockstep.server.store import dialect, tables
from lockstep.server.store.errors import StoreError
from lockstep.server.store.schema import migrate
from lockstep.server.store.writer import Writer

T = TypeVar("T")

log = structlog.get_logger(__name__)

_READERS = 8


class Database:
    """The database of one data folder. Writes go through one thread; reads are their own short connections."""

    def __init__(self, path: Path) -> None:
        """Prepare to open it; the file is made by whoever is first to connect."""
        self._path = path
        self._writing = dialect.writing_engine(path)
        self._reading = dialect.reading_engine(path)
        self._writer: Writer | None = None
        # Its own: whatever else waits in threads does not hold up those who ask for jobs.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="lockstep-store-reader")

    def prepare(self) -> None:
        """Look whether anything is lost, and bring the tables up to date.

        Raises:
            StoreError: a newer Lockstep has written it.
        """
        before = dialect.committed_before(self._path)
        with self._reading.connect() as connection:
            lost, found = dialect.lost_pages(connection, before)
        if lost:
            log.error(
                "changes that were acknowledged are lost: the store's write-ahead log is damaged; the newest jobs, "
                "events and points may be missing; put a good copy of the data folder in its place if you have one",
                lost_pages=lost,
                found_pages=found,
            )
        migrate(self._writing)

    def start(self, committed: Callable[[int, float], None]) -> None:
        """Start to take writes; `committed` is told of each commit by the writer's thread, see `Store`."""
        self._writer = Writer(self._writing, self._path.parent, committed)

    def close(self) -> None:
        """Write what is queued and close every connection."""
        if self._writer is not None:
            self._writer.close()
        self._readers.shutdown()
        self._writing.dispose()
        self._reading.dispose()

    def write_now(self, change: Callable[[Connection], T]) -> T:
        """Write in a transaction of its own, and wait for it: while the server starts and nobody else writes."""
        with self._writing.begin() as connection:
            return change(connection)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Write in a transaction; see `Writer.write`."""
        return await self._the_writer.write(change)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a connection of its own, off the event loop."""

        def run() -> T:
            with self._reading.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def try_out(self) -> None:
        """Begin a write and read something, as every call does.

        Raises:
            StoreUnwritable: it cannot be written.
            StoreError: it is closed.
        """
        await self._the_writer.try_out()
        await self.read(lambda connection: connection.execute(select(tables.meta).limit(1)).all())

    @property
    def _the_writer(self) -> Writer:
        if self._writer is None:
            raise StoreError("the store takes no writes yet")
        return self._writer
