"""Reads the metrics of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lockstep.client.errors import InvalidRequest, Violation
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
) -> Iterator[list[MetricPoint]]:
    """Yield points as they come, those together that came together; see `Job.metrics`."""
    request = metrics_service_pb2.StreamMetricsRequest(job_id=job_id, names=names, kind=kind.to_proto())
    for message in client._connection.follow(client._metrics.StreamMetrics, lambda: request):
        # The cursor stands after all points of its message, and a message arrives whole or not at all.
        request.cursor = message.cursor
        points = [MetricPoint.from_proto(point) for point in message.points if point.step > after_step]
        if points:
            yield points


def check_names(client: Client, job_id: str, names: Iterable[str], *, has_ended: bool) -> None:
    """Refuse a name that no point of a job has, where it has points and there is no such one to come.

    None is to come once the job has ended, or once it was validated: every other metric has a point by then.

    Raises:
        InvalidRequest: a name is not known; the message lists those that are.
    """
    unknown = [name for name in names if not _first_page(client, job_id, names=[name], page_size=1)]
    if not unknown:
        return
    known: set[str] = set()
    for kind in (MetricKind.RESULT, MetricKind.TIMING):  # a page of each shows all, since points come by step
        known |= {point.name for point in _first_page(client, job_id, kind=kind.to_proto(), page_size=_PAGE_SIZE)}
    if known and (has_ended or any(name.startswith("val_") for name in known)):
        raise InvalidRequest(
            [
                Violation(
                    "names", f"names has {name!r}, which is no metric of this job; it has {', '.join(sorted(known))}"
                )
                for name in unknown
            ]
        )


def _first_page(client: Client, job_id: str, **fields: Any) -> Sequence[metrics_service_pb2.MetricPoint]:
    request = metrics_service_pb2.ListMetricsRequest(job_id=job_id, **fields)
    return client._connection.call(client._metrics.ListMetrics, request).points
