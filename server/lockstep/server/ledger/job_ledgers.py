"""The ledgers of the jobs that are told of: in memory, and on disk a moment later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import structlog

from lockstep.server.errors import StoreUnwritable
from lockstep.server.ledger.ledger import JobLedger
from lockstep.server.process.background import keep_running
from lockstep.server.store import LedgerStore
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest

_STORED_EVERY_S = 2.0

log = structlog.get_logger(__name__)


class JobLedgers:
    """All ledgers. What a crash of the server takes is what workers that died in the last seconds had told."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._ledgers: dict[str, JobLedger] = {}
        self._unstored: set[str] = set()
        self._in_hand: set[str] = set()  # being stored, which may fail
        self._reading = asyncio.Lock()
        self._storing: asyncio.Task[None] | None = None

    async def start(self, job_ids: Iterable[str]) -> None:
        """Take up the ledgers of these jobs, so that what is counted goes on where it was, and begin to store."""
        self._ledgers |= {
            job_id: JobLedger.from_json(said) for job_id, said in (await self._store.load_ledgers(job_ids)).items()
        }
        self._storing = keep_running(self._keep_storing(), name="ledgers")

    async def stop(self) -> None:
        """Store what is left."""
        if self._storing is not None:
            self._storing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._storing
        await self.store_all()

    async def report(self, told: ReportLedgerRequest) -> None:
        """Take a worker's account."""
        ledger = await self._open(told.job_id)
        if ledger.add(told, time.time()):
            self._unstored.add(told.job_id)

    async def read(self, job_id: str) -> JobLedger:
        """The ledger of a job; an empty one where nothing is known."""
        known = self._ledgers.get(job_id)
        return known if known is not None else await self._load(job_id)

    def rank_of(self, job_id: str, attempt: int, number: int) -> int | None:
        """Return the rank that a worker had when it was heard of last; None while it has said nothing."""
        ledger = self._ledgers.get(job_id)
        return ledger.rank_of(attempt, number) if ledger is not None else None

    def newest(self) -> dict[str, JobLedger]:
        """The ledgers in memory, by job_id."""
        return dict(self._ledgers)

    async def _open(self, job_id: str) -> JobLedger:
        if job_id not in self._ledgers:
            async with self._reading:
                if job_id not in self._ledgers:
                    self._ledgers[job_id] = await self._load(job_id)
        return self._ledgers[job_id]

    async def _load(self, job_id: str) -> JobLedger:
        stored = await self._store.load_ledgers([job_id])
        return JobLedger.from_json(stored[job_id]) if stored else JobLedger()

    def forget(self, is_told_of: Callable[[str], bool]) -> None:
        """Forget the ledgers of jobs that nobody is told of any more; they are stored."""
        for job_id in [job_id for job_id in self._ledgers if not is_told_of(job_id)]:
            if job_id not in self._unstored | self._in_hand:
                del self._ledgers[job_id]

    def drop(self, job_id: str) -> None:
        """Forget the ledger of a job that was deleted, stored or not."""
        self._ledgers.pop(job_id, None)
        self._unstored.discard(job_id)
        self._in_hand.discard(job_id)

    async def _keep_storing(self) -> None:
        while True:
            await asyncio.sleep(_STORED_EVERY_S)
            await self.store_all()

    async def store_all(self) -> None:
        """Store what has changed; when that fails it is tried again in a while."""
        if not self._unstored:
            return
        self._in_hand, self._unstored = self._unstored, set()
        try:
            await self._store.save_ledgers({job_id: self._ledgers[job_id].to_json() for job_id in self._in_hand})
        except StoreUnwritable:  # the store says so in the log
            self._unstored |= self._in_hand
        except Exception:
            self._unstored |= self._in_hand
            log.exception("the ledgers could not be stored; tried again in a while", jobs=len(self._in_hand))
        self._in_hand = set()
