"""What StreamLogs sends: one read and one message for all followers of a log that stand at the same place."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.server.logs.files import Position
from lockstep.server.logs.store import LogStore, Wanted
from lockstep.server.rpc.paging import make_token
from lockstep.server.watching.shared_reads import SharedReads
from lockstep.v1.log_service_pb2 import LogLine, StreamLogsResponse

_KEPT_BESIDE_BYTES = 500
"""What keeping a message takes besides its bytes."""


@dataclass(frozen=True)
class Part:
    """The lines after a place.

    Attributes:
        message: a StreamLogsResponse, as it goes over the wire; empty when there are none that are wanted.
        place: the place behind them; the same as before at the end of the log.
    """

    message: bytes
    place: Position


class LogFeed:
    """The logs of all jobs."""

    def __init__(self, logs: LogStore) -> None:
        self._logs = logs
        self._reads = SharedReads()

    async def after(self, job_id: str, place: Position, wanted: Wanted) -> Part:
        """Read some lines after a place of a log that the caller listens to."""
        # Only as long as nothing was printed since: then the oldest lines may be gone, of which a reader is told.
        where = job_id, place, wanted, self._logs.notifier.round_of(job_id)
        kept: Part | None = self._reads.kept(where)
        return kept if kept is not None else await self._reads.read(where, lambda: self._read(where))

    async def _read(self, where: tuple[str, Position, Wanted, int]) -> Part:
        job_id, place, wanted, _ = where

        def write(lines: list[LogLine], after: Position) -> Part:
            return Part(message_of(job_id, lines, after) if lines else b"", after)

        part = await self._logs.read(job_id, place, wanted, write)
        if part.place != place:
            self._reads.keep(where, part, len(part.message) + _KEPT_BESIDE_BYTES)
        return part


def scope_of(job_id: str) -> list[str]:
    """What a cursor belongs to: only the job, for who resumes may want other lines from there on."""
    return ["logs", job_id]


def message_of(job_id: str, lines: list[LogLine], after: Position) -> bytes:
    """Write a message of StreamLogs."""
    return StreamLogsResponse(lines=lines, cursor=make_token([*after], scope_of(job_id))).SerializeToString()
