"""Which jobs are still to be looked at, whether they can ever fit on the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from lockstep.server.coordinator.gangs import Entry
from lockstep.server.jobs.job import State
from lockstep.server.scheduling.scheduler import Node, why_it_never_fits

_JOBS_IN_A_TURN = 500
"""Jobs that are looked at before everything else has its turn: a queue of ten thousand is no reason to answer late."""


class Unchecked:
    """The jobs whose wishes, or whose cluster, have changed since they were looked at."""

    def __init__(self) -> None:
        self._all = False
        self._job_ids: set[str] = set()

    def add(self, job_id: str) -> None:
        """Have a job looked at."""
        self._job_ids.add(job_id)

    def add_all(self) -> None:
        """Have all jobs looked at."""
        self._all = True

    async def take_what_never_fits(
        self, entries: Mapping[str, Entry], nodes: Sequence[Node]
    ) -> AsyncIterator[tuple[Entry, str]]:
        """Look at those jobs, and yield those that can never run, each with the reason in words."""
        job_ids = list(entries) if self._all else list(self._job_ids)
        self._all, self._job_ids = False, set()
        # Most jobs ask for the same as others.
        known: dict[tuple[float, int, int], str | None] = {}
        for number, job_id in enumerate(job_ids):
            if number and number % _JOBS_IN_A_TURN == 0:
                await asyncio.sleep(0)
            entry = entries.get(job_id)
            if entry is None or entry.job.state is not State.QUEUED:
                continue
            resources = entry.job.spec.resources
            key = (resources.cpus_per_worker, resources.gpus_per_worker, resources.min_workers)
            if key not in known:
                known[key] = why_it_never_fits(resources, nodes)
            why = known[key]
            if why is not None:
                yield entry, why
