"""LogService: read what the workers of jobs have printed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC

from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.errors import InvalidRequest
from lockstep.server.logs.files import Position
from lockstep.server.logs.store import LogStore, Wanted
from lockstep.server.rpc.interceptors import Context, as_written
from lockstep.server.rpc.job_service import required_job_id
from lockstep.server.rpc.log_feed import LogFeed, message_of, scope_of
from lockstep.server.rpc.paging import not_negative, read_token
from lockstep.server.watching.notifier import Notifier
from lockstep.v1.log_service_pb2 import StreamLogsRequest, StreamLogsResponse
from lockstep.v1.log_service_pb2_grpc import LogServiceServicer

_MAX_TAIL = 100_000
_GATHER_S = 0.05
"""How long lines gather before a follower is sent the next ones."""
_LEAVE_S = 10.0
"""How long the workers of a job that has ended may take to leave, which they do when all that they printed is here."""


class LogService(LogServiceServicer):
    """Stream the lines of jobs."""

    def __init__(self, coordinator: Coordinator, notifier: Notifier, logs: LogStore) -> None:
        self._coordinator, self._logs, self._feed = coordinator, logs, LogFeed(logs)
        self._notifier = notifier

    async def StreamLogs(self, request: StreamLogsRequest, context: Context) -> AsyncIterator[StreamLogsResponse]:
        job_id, wanted = required_job_id(request.job_id), _wanted(request)
        position = read_token(request.cursor, "cursor", scope_of(job_id), (int, int, int))
        tail = not_negative(request.tail_lines, "tail_lines") if request.HasField("tail_lines") else None
        if tail is not None and tail > _MAX_TAIL:
            raise InvalidRequest.of("tail_lines", f"is {tail:,}; allowed: at most {_MAX_TAIL:,}; leave it out for all")
        await self._coordinator.get(job_id)
        place = Position() if position is None else Position(*position)
        with self._logs.notifier.listen(job_id) as wakeup, self._notifier.listen(job_id, wakeup):
            patience = asyncio.get_running_loop().time() + _LEAVE_S
            if tail is not None and position is None:
                for lines, place in await self._logs.tail(job_id, tail, wanted):
                    if lines:
                        yield as_written(StreamLogsResponse, message_of(job_id, lines, place))
            while True:
                wakeup.clear()
                # Asked before reading: what a worker has printed is stored before it leaves.
                has_ended = (await self._coordinator.get(job_id)).state.has_ended
                has_left = has_ended and not self._coordinator.has_workers(job_id)
                while (part := await self._feed.after(job_id, place, wanted)).place != place:
                    place = part.place
                    if part.message:
                        yield as_written(StreamLogsResponse, part.message)
                await self._coordinator.get(job_id)  # else it was deleted meanwhile
                if has_left or not (has_ended or request.follow):
                    return
                if has_ended and asyncio.get_running_loop().time() >= patience:
                    return
                if not has_ended:
                    patience = asyncio.get_running_loop().time() + _LEAVE_S
                await self._next_lines(wakeup, patience if has_ended else None)

    async def _next_lines(self, wakeup: asyncio.Event, until: float | None) -> None:
        """Wait until there may be something new, and a moment for more of it."""
        self._logs.notifier.check()
        self._notifier.check()
        try:
            async with asyncio.timeout_at(until):
                await wakeup.wait()
                await asyncio.sleep(_GATHER_S)
        except TimeoutError:
            return


def _wanted(request: StreamLogsRequest) -> Wanted:
    rank = not_negative(request.rank, "rank") if request.HasField("rank") else None
    if not request.HasField("since"):
        return Wanted(rank)
    try:
        return Wanted(rank, request.since.ToDatetime(UTC))
    except ValueError as error:
        raise InvalidRequest.of("since", "is no time; allowed: a Timestamp from year 1 to 9999") from error
