"""InternalService: the connection to the launcher, and the workers' reports."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import structlog

from lockstep.contract.metadata import ATTEMPT_TOKEN, LAUNCHER_TOKEN, NODE_TOKEN
from lockstep.server.cluster.node_reports import check_node_report
from lockstep.server.cluster.nodes import NodeSamples
from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.coordinator.dispatcher import Dispatcher
from lockstep.server.coordinator.launcher_connection import LauncherConnection
from lockstep.server.errors import PermissionDenied, ShuttingDown
from lockstep.server.jobs.reports import check_ledger_report, check_log_report, read_report
from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.logs.store import LogStore
from lockstep.server.rpc.interceptors import Context
from lockstep.v1.internal_service_pb2 import (
    ConnectLauncherRequest,
    ConnectLauncherResponse,
    GpuUse,
    ReportLedgerRequest,
    ReportLedgerResponse,
    ReportLogsRequest,
    ReportLogsResponse,
    ReportNodeRequest,
    ReportNodeResponse,
    ReportProgressRequest,
    ReportProgressResponse,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceServicer

_MOST_POINTS_ON_LOOP = 1_000

log = structlog.get_logger(__name__)


class InternalService(InternalServiceServicer):
    """For launcher and workers only; each call proves by a token who it comes from."""

    def __init__(
        self,
        coordinator: Coordinator,
        ledgers: JobLedgers,
        dispatcher: Dispatcher,
        node_samples: NodeSamples,
        logs: LogStore,
        launcher_token: str,
    ) -> None:
        self._coordinator = coordinator
        self._logs = logs
        self._launcher_token = launcher_token
        self._ledgers = ledgers
        self._dispatcher = dispatcher
        self._node_samples = node_samples

    async def ConnectLauncher(
        self, request_iterator: AsyncIterator[ConnectLauncherRequest], context: Context
    ) -> AsyncIterator[ConnectLauncherResponse]:
        if not secrets.compare_digest(_metadata(context, LAUNCHER_TOKEN), self._launcher_token.encode()):
            raise PermissionDenied(f"{LAUNCHER_TOKEN} is not the one that this server gave to its launcher")
        connection = self._dispatcher.launcher_connected()
        reading = asyncio.create_task(self._read_facts(connection, request_iterator), name="launcher facts")
        try:
            async for order in connection.orders():
                yield order
            if not reading.done():  # The coordinator ended the connection, not the launcher.
                raise ShuttingDown
            reading.result()
        finally:
            self._dispatcher.launcher_disconnected(connection)  # before any wait, which the end of the call may cancel
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def ReportLedger(self, request: ReportLedgerRequest, context: Context) -> ReportLedgerResponse:
        self._coordinator.check_token(request.job_id, request.attempt, _metadata(context, ATTEMPT_TOKEN))
        check_ledger_report(request)
        if not await self._coordinator.has_job(request.job_id):
            raise PermissionDenied(f"there is no job {request.job_id[:80]!r}; stop")
        await self._ledgers.report(request)
        return ReportLedgerResponse()

    async def _read_facts(self, connection: LauncherConnection, facts: AsyncIterator[ConnectLauncherRequest]) -> None:
        try:
            async for request in facts:
                await self._take_fact(connection, request)
        finally:
            connection.end()

    async def _take_fact(self, connection: LauncherConnection, request: ConnectLauncherRequest) -> None:
        self._dispatcher.launcher_spoke(connection)
        match request.WhichOneof("fact"):
            case "heartbeat":
                pass
            case "ready":
                await self._dispatcher.launcher_ready(connection, request.ready.epoch, request.ready.gangs)
            case "capacity":
                self._dispatcher.capacity_changed(connection, request.capacity)
            case "processes":
                self._dispatcher.processes_changed(connection, request.processes)
            case "gang_started":
                started = request.gang_started
                await self._dispatcher.gang_started(connection, started.job_id, started.attempt)
            case "gang_stopped":
                await self._dispatcher.gang_stopped(connection, request.gang_stopped)
            case "gang_changed":
                await self._dispatcher.gang_changed(connection, request.gang_changed)
            case _:
                log.warning("the launcher sent an empty fact")

    async def ReportProgress(self, request: ReportProgressRequest, context: Context) -> ReportProgressResponse:
        token = _metadata(context, ATTEMPT_TOKEN)
        if len(request.points) > _MOST_POINTS_ON_LOOP:  # a backlog
            report = await asyncio.to_thread(read_report, request, token)
        else:
            report = read_report(request, token)
        return ReportProgressResponse(acknowledged_sequence=await self._coordinator.report(report))

    async def ReportLogs(self, request: ReportLogsRequest, context: Context) -> ReportLogsResponse:
        self._coordinator.check_token(request.job_id, request.attempt, _metadata(context, ATTEMPT_TOKEN))
        check_log_report(request)
        if await self._coordinator.has_job(request.job_id):  # else nobody can read the lines, and they may go
            await self._logs.append(request)
        return ReportLogsResponse()

    async def ReportNode(self, request: ReportNodeRequest, context: Context) -> ReportNodeResponse:
        self._coordinator.check_node_token(_metadata(context, NODE_TOKEN))
        check_node_report(request)
        telemetry = self._node_samples
        telemetry.take(request.node_id, request.telemetry)
        uses = telemetry.gpu_uses(request.node_id)
        return ReportNodeResponse(gpu_uses=[GpuUse(index=use.index, job_id=use.job_id) for use in uses])


def _metadata(context: Context, key: str) -> bytes:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, bytes) else value.encode()
    return b""
