"""Reads the metrics of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lockstep.client.types import MetricKind, MetricPoint
from lockstep.v1 import metrics_service_pb2

if TYPE_CHECKING:
    from lockstep.client.client import Client

_PAGE_SIZE = 5_000


def list_metrics(
    client: Client, job_id: str, names: Sequence[str], after_step: int, kind: MetricKind
) -> Iterator[MetricPoint]:
    """Yield the points that there are; see `Job.metrics`."""
    request = metrics_service_pb2.ListMetricsRequest(
        job_id=job_id, names=names, after_step=after_step, kind=kind.to_proto(), page_size=_PAGE_SIZE
    )
    while True:
        page = client._connection.call(client._metrics.ListMetrics, request)
        yield from map(MetricPoint.from_proto, page.points)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def follow_metrics(
    client: Client, job_id: str, names: Sequence[str], after_step: int, kind: MetricKind
) -> Iterator[MetricPoint]:
    """Yield points as they come; see `Job.metrics`."""
    request = metrics_service_pb2.StreamMetricsRequest(job_id=job_id, names=names, kind=kind.to_proto())
    for message in client._connection.follow(client._metrics.StreamMetrics, lambda: request):
        # The cursor stands after all points of its message, and a message arrives whole or not at all.
        request.cursor = message.cursor
        yield from (MetricPoint.from_proto(point) for point in message.points if point.step > after_step)
