"""What StreamMetrics sends: one read and one message for all followers of a job that stand at the same place."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.jobs.records import StoredPoint
from lockstep.server.rpc.messages import point_to_proto
from lockstep.server.rpc.paging import make_token
from lockstep.server.store import MetricStore
from lockstep.server.watching.notifier import Notifier
from lockstep.server.watching.shared_reads import SharedReads
from lockstep.v1.metrics_service_pb2 import StreamMetricsResponse

_POINTS_PER_MESSAGE = 1_000
_KEPT_BESIDE_BYTES = 500
"""What keeping a message takes besides its bytes."""


@dataclass(frozen=True)
class Batch:
    """The points after a place.

    Attributes:
        message: a StreamMetricsResponse, as it goes over the wire; empty when there are none.
        seq: the place behind them.
        is_full: there may be more.
        has_ended: the job had ended before they were read: unless it is full, nothing comes any more.
        round: of the job's notifier in which they were read.
    """

    message: bytes
    seq: int
    is_full: bool
    has_ended: bool
    round: int


class PointFeed:
    """The points of all jobs, in the order in which they were stored."""

    def __init__(self, coordinator: Coordinator, points: MetricStore, notifier: Notifier) -> None:
        self._coordinator = coordinator
        self._reads = SharedReads()
        self._points = points
        self._notifier = notifier

    async def after(self, job_id: str, names: tuple[str, ...], kind: int, seq: int) -> Batch:
        """Read the points after place `seq` of a job that the caller listens to."""
        place = job_id, names, kind, seq
        kept: Batch | None = self._reads.kept(place)
        if kept is not None:
            return kept
        now = self._notifier.round_of(job_id)
        return await self._reads.read((place, now), lambda: self._read(place, now))

    async def _read(self, place: tuple[str, tuple[str, ...], int, int], now: int) -> Batch:
        job_id, names, kind, seq = place
        # Asked before reading: points are stored no later than the end of their job.
        has_ended = (await self._coordinator.get(job_id)).state.has_ended

        def write(points: list[StoredPoint]) -> Batch:
            if not points:
                return Batch(b"", seq, False, has_ended, now)
            after = points[-1].seq
            message = StreamMetricsResponse(points=map(point_to_proto, points), cursor=cursor(job_id, after))
            is_full = len(points) == _POINTS_PER_MESSAGE
            return Batch(message.SerializeToString(), after, is_full, has_ended, now)

        batch = await self._points.new_points(
            job_id, names=names, kind=kind, after_seq=seq, limit=_POINTS_PER_MESSAGE, make=write
        )
        await self._coordinator.get(job_id)  # else it was deleted meanwhile, and what was read may be a part
        if batch.message:
            self._reads.keep(place, batch, len(batch.message) + _KEPT_BESIDE_BYTES)
        return batch


def scope_of(job_id: str) -> list[str]:
    """What a cursor belongs to: only the job, for a follower may widen its filters and go on from where it was."""
    return ["stream", job_id]


def cursor(job_id: str, seq: int) -> str:
    """Write a place as a cursor."""
    return make_token([seq], scope_of(job_id))
