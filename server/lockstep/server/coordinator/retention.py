"""Forgetting jobs that ended long ago, where the operator wants that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from lockstep.server.errors import StoreUnwritable
from lockstep.server.jobs.job import State
from lockstep.server.store import JobStore, MetricStore

_JOBS_AT_ONCE = 100
_POINTS_AT_ONCE = 5_000

log = structlog.get_logger(__name__)


class Retention:
    """Deletes jobs from the store some days after they have ended; their checkpoints stay where they are.

    Args:
        jobs: those that the store knows.
        metrics: their points.
        keep_days: how long a job is kept after its end; None for ever.
        forgotten: told of each job that was deleted.

    Attributes:
        deleting: the jobs of which a part may be deleted already; nobody may be shown the rest.
    """

    def __init__(
        self,
        jobs: JobStore,
        metrics: MetricStore,
        keep_days: float | None,
        forgotten: Callable[[str, State], Awaitable[None]],
    ) -> None:
        self.deleting: set[str] = set()
        self._jobs, self._metrics, self._keep_days, self._forgotten = jobs, metrics, keep_days, forgotten

    async def tidy(self, now: datetime) -> None:
        """Delete what is due; what cannot be deleted now is tried again the next time."""
        if self._keep_days is None:
            return
        try:
            while jobs := await self._jobs.ended_before(now - timedelta(days=self._keep_days), _JOBS_AT_ONCE):
                for job_id, state in jobs:
                    await self._delete(job_id, state)
        except StoreUnwritable:  # the store says so in the log
            return

    async def _delete(self, job_id: str, state: State) -> None:
        self.deleting.add(job_id)  # and it stays there when this fails: its points may be gone
        while await self._metrics.delete_points(job_id, _POINTS_AT_ONCE) == _POINTS_AT_ONCE:
            continue
        await self._jobs.delete_job(job_id)
        self.deleting.discard(job_id)
        await self._forgotten(job_id, state)  # begins at once: nobody reads the job in between
        log.info("job deleted, since it ended long ago", job_id=job_id, keep_days=self._keep_days)
