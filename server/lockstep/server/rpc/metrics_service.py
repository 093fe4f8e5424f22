"""MetricsService: translate, read the store, translate back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.coordinator.dispatcher import Dispatcher
from lockstep.server.errors import InvalidRequest
from lockstep.server.jobs.records import StoredPoint
from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.rpc.interceptors import Context, as_written
from lockstep.server.rpc.job_service import required_job_id
from lockstep.server.rpc.messages import ledger_to_proto, point_to_proto
from lockstep.server.rpc.paging import make_token, not_negative, page_size, read_token
from lockstep.server.rpc.point_feed import PointFeed, scope_of
from lockstep.server.store import MetricStore
from lockstep.server.watching.notifier import Notifier
from lockstep.v1.ledger_pb2 import Ledger
from lockstep.v1.metrics_service_pb2 import (
    GetLedgerRequest,
    ListMetricsRequest,
    ListMetricsResponse,
    MetricKind,
    StreamMetricsRequest,
    StreamMetricsResponse,
)
from lockstep.v1.metrics_service_pb2_grpc import MetricsServiceServicer

_MAX_NAMES = 1_000


class MetricsService(MetricsServiceServicer):
    """Read the metrics of jobs."""

    def __init__(
        self,
        coordinator: Coordinator,
        points: MetricStore,
        notifier: Notifier,
        ledgers: JobLedgers,
        dispatcher: Dispatcher,
    ) -> None:
        self._coordinator = coordinator
        self._feed = PointFeed(coordinator, points, notifier)
        self._points = points
        self._notifier = notifier
        self._ledgers = ledgers
        self._dispatcher = dispatcher

    async def ListMetrics(self, request: ListMetricsRequest, context: Context) -> ListMetricsResponse:
        job_id = required_job_id(request.job_id)
        limit = page_size(request.page_size, default=1_000, most=10_000)
        after_step = not_negative(request.after_step, "after_step")
        kind = _kind(request.kind)
        names = _names(request.names)
        scope = ["metrics", job_id, names, kind, after_step]
        position = read_token(request.page_token, "page_token", scope, (int, int, str))
        await self._coordinator.get(job_id)

        def write(points: list[StoredPoint]) -> bytes:
            response = ListMetricsResponse(points=map(point_to_proto, points[:limit]))
            if len(points) > limit:
                last = points[limit - 1]
                response.next_page_token = make_token([last.kind, last.step, last.name], scope)
            return response.SerializeToString()

        page = await self._points.list_points(
            job_id,
            names=names,
            kind=kind,
            after_step=after_step,
            after=None if position is None else (position[0], position[1], position[2]),
            limit=limit + 1,
            make=write,
        )
        await self._coordinator.get(job_id)  # else it was deleted meanwhile, and what was read may be a part
        return as_written(ListMetricsResponse, page)

    async def StreamMetrics(
        self, request: StreamMetricsRequest, context: Context
    ) -> AsyncIterator[StreamMetricsResponse]:
        job_id = required_job_id(request.job_id)
        names, kind = tuple(_names(request.names)), _kind(request.kind)
        position = read_token(request.cursor, "cursor", scope_of(job_id), (int,))
        seq = 0 if position is None else position[0]
        await self._coordinator.get(job_id)
        notifier = self._notifier
        with notifier.listen(job_id) as wakeup:
            while True:
                wakeup.clear()
                batch = await self._feed.after(job_id, names, kind, seq)
                if batch.message:
                    seq = batch.seq
                    yield as_written(StreamMetricsResponse, batch.message)
                if batch.is_full:
                    continue
                if batch.has_ended:
                    return
                notifier.check()
                if batch.round == notifier.round_of(job_id):
                    await wakeup.wait()

    async def GetLedger(self, request: GetLedgerRequest, context: Context) -> Ledger:
        job_id = required_job_id(request.job_id)
        await self._coordinator.get(job_id)
        ledger = await self._ledgers.read(job_id)
        await self._coordinator.get(job_id)  # else it was deleted meanwhile
        return ledger_to_proto(ledger, self._dispatcher.node_names)


def _names(names: Iterable[str]) -> list[str]:
    distinct = sorted(set(names))
    if len(distinct) > _MAX_NAMES:
        raise InvalidRequest.of("names", f"has {len(distinct):,} items; allowed: at most {_MAX_NAMES:,}")
    return distinct


def _kind(kind: int) -> int:
    if kind not in MetricKind.values():
        raise InvalidRequest.of("kind", f"is {kind}; allowed: a MetricKind, or 0 for all")
    return kind
