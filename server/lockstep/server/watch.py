"""How watchers are woken: a bell per job, rung after each write, that says only "look again"."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.server.errors import ShuttingDown


class Bells:
    """One bell per watcher, by job. A watcher reads what is new from the store, so a slow one costs nothing here."""

    def __init__(self) -> None:
        self._by_job: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closing = False

    @contextmanager
    def listen(self, job_id: str, bell: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the job has changed or the server shuts down; it starts unset.

        Args:
            job_id: the job.
            bell: an event to use, for whoever listens to two. Default: a new one.
        """
        bell = bell or asyncio.Event()
        self._by_job[job_id].add(bell)
        try:
            yield bell
        finally:
            self._by_job[job_id].discard(bell)
            if not self._by_job[job_id]:
                del self._by_job[job_id]

    def ring(self, job_id: str) -> None:
        """Wake the watchers of a job."""
        for bell in self._by_job.get(job_id, ()):
            bell.set()

    def count(self) -> int:
        """Count the watchers."""
        return sum(len(bells) for bells in self._by_job.values())

    def close(self) -> None:
        """Wake everybody, to leave."""
        self._closing = True
        for bells in self._by_job.values():
            for bell in bells:
                bell.set()

    def check(self) -> None:
        """Raise ShuttingDown when watchers shall leave."""
        if self._closing:
            raise ShuttingDown
