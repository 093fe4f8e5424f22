"""Lines of a job's log, as they come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lockstep.client.types import LogLine
from lockstep.v1.log_service_pb2 import StreamLogsRequest

if TYPE_CHECKING:
    from lockstep.client.client import Client


def stream_logs(
    client: Client, job_id: str, *, follow: bool, rank: int | None, tail: int | None, since: datetime | timedelta | None
) -> Iterator[LogLine]:
    """Yield lines; see Job.logs."""
    request = StreamLogsRequest(job_id=job_id, follow=follow, rank=rank, tail_lines=tail)
    if since is not None:
        moment = datetime.now(UTC) - since if isinstance(since, timedelta) else since
        request.since.FromDatetime(moment.astimezone(UTC))
    for message in client._connection.follow(client._logs.StreamLogs, lambda: request):
        # The cursor stands after all lines of its message, and a message arrives whole or not at all.
        request.cursor = message.cursor
        yield from map(LogLine.from_proto, message.lines)
