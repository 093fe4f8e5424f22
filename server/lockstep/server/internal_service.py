"""InternalService: the line to the launcher, and the workers' reports."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator

import structlog

from lockstep.server.coordinator import Coordinator, Report
from lockstep.server.errors import InvalidRequest, PermissionDenied, ShuttingDown
from lockstep.server.gangs import LauncherLine
from lockstep.server.interceptors import Context
from lockstep.server.job import Progress, Reported
from lockstep.server.store import StoredPoint
from lockstep.v1.internal_service_pb2 import (
    ConnectLauncherRequest,
    ConnectLauncherResponse,
    ReportProgressRequest,
    ReportProgressResponse,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceServicer
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_UNSPECIFIED, MetricKind, MetricPoint

LAUNCHER_TOKEN_KEY = "lockstep-launcher-token"
ATTEMPT_TOKEN_KEY = "lockstep-attempt-token"

_MAX_NAME = 128

log = structlog.get_logger(__name__)


class InternalService(InternalServiceServicer):
    """For launcher and workers only; each call proves by a token who it comes from."""

    def __init__(self, coordinator: Coordinator, launcher_token: str) -> None:
        self._coordinator = coordinator
        self._launcher_token = launcher_token

    async def ConnectLauncher(
        self, request_iterator: AsyncIterator[ConnectLauncherRequest], context: Context
    ) -> AsyncIterator[ConnectLauncherResponse]:
        if not secrets.compare_digest(_metadata(context, LAUNCHER_TOKEN_KEY), self._launcher_token.encode()):
            raise PermissionDenied(f"{LAUNCHER_TOKEN_KEY} is not the one that this server gave to its launcher")
        line = self._coordinator.launcher_connected()
        reading = asyncio.create_task(self._read_facts(line, request_iterator), name="launcher facts")
        try:
            async for order in line.orders():
                yield order
            if not reading.done():  # The coordinator ended the line, not the launcher.
                raise ShuttingDown
            reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._coordinator.launcher_disconnected(line)

    async def _read_facts(self, line: LauncherLine, requests: AsyncIterator[ConnectLauncherRequest]) -> None:
        try:
            async for request in requests:
                await self._take_fact(line, request)
        finally:
            line.end()

    async def _take_fact(self, line: LauncherLine, request: ConnectLauncherRequest) -> None:
        match request.WhichOneof("fact"):
            case "ready":
                await self._coordinator.launcher_ready(line, request.ready.epoch)
            case "capacity":
                self._coordinator.capacity_changed(line, request.capacity)
            case "gang_started":
                await self._coordinator.gang_started(request.gang_started.job_id, request.gang_started.attempt)
            case "gang_stopped":
                stopped = request.gang_stopped
                error = stopped.error if stopped.HasField("error") else None
                await self._coordinator.gang_stopped(stopped.job_id, stopped.attempt, error)
            case _:
                log.warning("the launcher sent an empty fact")

    async def ReportProgress(self, request: ReportProgressRequest, context: Context) -> ReportProgressResponse:
        report = _report(request, _metadata(context, ATTEMPT_TOKEN_KEY))
        return ReportProgressResponse(acknowledged_sequence=await self._coordinator.report(report))


def _metadata(context: Context, key: str) -> bytes:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, bytes) else value.encode()
    return b""


def _report(request: ReportProgressRequest, token: bytes) -> Report:
    for field, value in (("job_id", request.job_id), ("attempt", request.attempt), ("sequence", request.sequence)):
        if not value or (isinstance(value, int) and value < 0):
            raise InvalidRequest.of(field, f"is {value!r}; a report must say it")
    progress = request.progress
    if progress.step < 0 or progress.total_steps < 0 or not math.isfinite(progress.epoch):
        raise InvalidRequest.of("progress", "has a negative step or an epoch that is no number")
    event = Reported(
        Progress(progress.step, progress.total_steps, progress.epoch),
        request.hardware_class,
        request.result if request.HasField("result") else None,
    )
    points = [_point(number, point) for number, point in enumerate(request.points)]
    return Report(request.job_id, request.attempt, request.sequence, token.decode("utf-8", "replace"), event, points)


def _point(number: int, point: MetricPoint) -> StoredPoint:
    field = f"points[{number}]"
    if not 0 < len(point.name) <= _MAX_NAME:
        raise InvalidRequest.of(f"{field}.name", f"has {len(point.name)} characters; allowed: 1 to {_MAX_NAME}")
    if point.step < 1:
        raise InvalidRequest.of(f"{field}.step", f"is {point.step}; steps count from 1")
    if point.kind == METRIC_KIND_UNSPECIFIED or point.kind not in MetricKind.values():
        raise InvalidRequest.of(f"{field}.kind", f"is {point.kind}; it must say whether this is a result or a timing")
    return StoredPoint(point.name, point.step, point.epoch, point.value, point.kind)
