"""What WatchJob sends: one read and one message for all watchers of a job that have seen the same."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.coordinator.shown_jobs import ShownJobs
from lockstep.server.jobs.job import Job
from lockstep.server.rpc.messages import event_to_proto, job_to_proto
from lockstep.server.store import JobStore
from lockstep.server.watching.notifier import Notifier
from lockstep.server.watching.shared_reads import SharedReads
from lockstep.v1.job_service_pb2 import WatchJobResponse

_EVENTS_PER_MESSAGE = 500


@dataclass(frozen=True)
class Look:
    """A job, and the events after a place.

    Attributes:
        message: a WatchJobResponse, as it goes over the wire.
        job: as it was.
        sequence: the place behind the events.
        brings_events: whether there were any.
    """

    message: bytes
    job: Job
    sequence: int
    brings_events: bool


class JobFeed:
    """All jobs, with their logs of events."""

    def __init__(self, coordinator: Coordinator, stored: JobStore, shown: ShownJobs, notifier: Notifier) -> None:
        self._coordinator = coordinator
        self._reads = SharedReads()
        self._stored = stored
        self._shown = shown
        self._notifier = notifier

    async def after(self, job_id: str, sequence: int) -> Look:
        """Look at a job that the caller listens to, and at its events after number `sequence`."""
        place = job_id, sequence
        job = self._shown.one(await self._coordinator.get(job_id))
        kept: Look | None = self._reads.kept(place)
        if kept is not None and kept.job == job:
            return kept
        now = self._notifier.round_of(job_id)
        return await self._reads.read((place, now), lambda: self._read(job_id, sequence))

    async def _read(self, job_id: str, sequence: int) -> Look:
        job = self._shown.one(await self._coordinator.get(job_id))
        events = await self._stored.list_events(
            job_id, after=sequence, up_to=job.event_count, limit=_EVENTS_PER_MESSAGE
        ) if job.event_count > sequence else []  # fmt: skip
        message = WatchJobResponse(job=job_to_proto(job), events=map(event_to_proto, events)).SerializeToString()
        await self._coordinator.get(job_id)  # else it was deleted meanwhile, and what was read may be a part
        look = Look(message, job, events[-1].sequence if events else sequence, bool(events))
        # A spec beside the message: a job that is kept here may be kept nowhere else.
        self._reads.keep((job_id, sequence), look, 2 * len(message) + 1_000)
        return look
