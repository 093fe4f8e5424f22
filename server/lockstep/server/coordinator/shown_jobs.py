"""Jobs as they are shown: as they are stored, and with what only memory knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lockstep.server.coordinator.dispatcher import Dispatcher
from lockstep.server.coordinator.gangs import Entry, claims_of
from lockstep.server.coordinator.live_jobs import LiveJobs
from lockstep.server.jobs.job import Job, State
from lockstep.server.scheduling.waiting import WAITS, Room, why_it_waits


class ShownJobs:
    """Completes jobs that are to be shown: their workers, and what those that are queued wait for."""

    def __init__(self, live: LiveJobs, dispatcher: Dispatcher) -> None:
        self._live, self._dispatcher = live, dispatcher

    def one(self, job: Job) -> Job:
        """Complete a job."""
        return self.all([job])[0]

    def all(self, jobs: Sequence[Job]) -> list[Job]:
        """Complete jobs; the look at the cluster is taken once for all."""
        room = None
        shown = []
        for job in jobs:
            entry = self._live.entries.get(job.job_id)
            if entry is None:
                shown.append(job)
                continue
            job = replace(job, running_workers=entry.job.running_workers)
            if job.state is State.QUEUED and entry.backoff is None:  # else it waits for its time, as it says itself
                room = room or self._room()
                job = self._explain(job, entry, room)
            shown.append(job)
        return shown

    def _room(self) -> Room:
        held, shares = claims_of(self._live.holding, self._dispatcher.processes)
        return Room(self._dispatcher.nodes_seen, held, shares)

    def _explain(self, job: Job, entry: Entry, room: Room) -> Job:
        place, why = self._live.place_of(job), self._dispatcher.why_not_ready()
        if not why and place is not None:
            why = why_it_waits(entry.request(), place, room)
        if not why:
            return job
        return replace(job, state_reason=why if job.state_reason == WAITS else f"{job.state_reason}; {why}")
