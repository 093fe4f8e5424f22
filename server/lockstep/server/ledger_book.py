"""The ledgers of the jobs that live or have just ended: in memory, and on disk a moment later."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from lockstep.server.ledger import JobLedger
from lockstep.server.store import Store
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest

_STORED_EVERY_S = 10.0
_KEPT_S = 900.0

log = structlog.get_logger(__name__)


class LedgerBook:
    """All ledgers. What a crash of the server takes is what workers that died in the last seconds had told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledgers: dict[str, JobLedger] = {}
        self._heard_at: dict[str, float] = {}
        self._unstored: set[str] = set()
        self._reading = asyncio.Lock()
        self._storing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to store; returns at once."""
        self._storing = asyncio.create_task(self._keep_storing(), name="ledgers")

    async def stop(self) -> None:
        """Store what is left."""
        if self._storing is not None:
            self._storing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._storing
        await self._store_all()

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
        worker = ledger.workers.get((attempt, number)) if ledger is not None else None
        return worker.rank if worker is not None else None

    def newest(self) -> dict[str, JobLedger]:
        """The ledgers in memory, by job_id."""
        return dict(self._ledgers)

    async def _open(self, job_id: str) -> JobLedger:
        if job_id not in self._ledgers:
            async with self._reading:
                if job_id not in self._ledgers:
                    self._ledgers[job_id] = await self._load(job_id)
        self._heard_at[job_id] = time.monotonic()
        return self._ledgers[job_id]

    async def _load(self, job_id: str) -> JobLedger:
        stored = await self._store.load_ledger(job_id)
        return JobLedger() if stored is None else JobLedger.from_json(stored)

    async def _keep_storing(self) -> None:
        while True:
            await asyncio.sleep(_STORED_EVERY_S)
            await self._store_all()
            old = time.monotonic() - _KEPT_S
            for job_id in [job_id for job_id, heard_at in self._heard_at.items() if heard_at < old]:
                del self._ledgers[job_id], self._heard_at[job_id]

    async def _store_all(self) -> None:
        unstored, self._unstored = self._unstored, set()
        if not unstored:
            return
        try:
            await self._store.save_ledgers({job_id: self._ledgers[job_id].to_json() for job_id in unstored})
        except Exception:
            self._unstored |= unstored
            log.exception("the ledgers could not be stored; tried again in a while", jobs=len(unstored))
