"""The gRPC server: services, health, reflection under both of its names."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from lockstep.server.coordinator.parts import Parts
from lockstep.server.health import Health, StoreHealthServicer
from lockstep.server.logs.store import LogStore
from lockstep.server.process.background import keep_running
from lockstep.server.rpc.catalog_service import CatalogService
from lockstep.server.rpc.checkpoint_service import CheckpointService
from lockstep.server.rpc.cluster_service import ClusterService
from lockstep.server.rpc.interceptors import TRANSPORT_MESSAGE_BYTES, CallInterceptor
from lockstep.server.rpc.internal_service import InternalService
from lockstep.server.rpc.job_service import JobService
from lockstep.server.rpc.log_service import LogService
from lockstep.server.rpc.metrics_service import MetricsService
from lockstep.server.settings import Address
from lockstep.server.telemetry import Telemetry
from lockstep.v1 import (
    catalog_service_pb2,
    checkpoint_service_pb2,
    cluster_service_pb2,
    job_service_pb2,
    log_service_pb2,
    metrics_service_pb2,
)
from lockstep.v1.catalog_service_pb2_grpc import add_CatalogServiceServicer_to_server
from lockstep.v1.checkpoint_service_pb2_grpc import add_CheckpointServiceServicer_to_server
from lockstep.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from lockstep.v1.internal_service_pb2_grpc import add_InternalServiceServicer_to_server
from lockstep.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from lockstep.v1.log_service_pb2_grpc import add_LogServiceServicer_to_server
from lockstep.v1.metrics_service_pb2_grpc import add_MetricsServiceServicer_to_server

# InternalService is served, but not listed: it is nobody's to call.
PUBLIC_SERVICES = (
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
    metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name,
    log_service_pb2.DESCRIPTOR.services_by_name["LogService"].full_name,
    checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"].full_name,
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
    catalog_service_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name,
)
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_REFLECTION_V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
# Python's package knows only v1alpha, current tools ask for v1 first; on the wire the two are the same. The v1 name is
# not listed, since there is no descriptor to show for it.
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

MOST_STREAMS = 1_000

_OPTIONS = (
    # Without this a second server would share the port and take half of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", TRANSPORT_MESSAGE_BYTES),
    # Of one connection; more calls wait in the client. Many, since who follows a thousand jobs does it over one.
    ("grpc.max_concurrent_streams", MOST_STREAMS),
    # Streams may be quiet for as long as a job is; clients keep them open by pinging.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Who is quiet for so long connects again when there is something to ask.
    ("grpc.max_connection_idle_ms", 600_000),
)


class GrpcServer:
    """The server of all services over the parts of one coordinator."""

    def __init__(
        self,
        parts: Parts,
        logs: LogStore,
        telemetry: Telemetry,
        health: Health,
        launcher_token: str,
        most_connections: int,
    ) -> None:
        # Above that new ones are closed at once: a client that is told so beats a server that can open no file.
        options = (*_OPTIONS, ("grpc.max_allowed_incoming_connections", most_connections))
        self._server = grpc.aio.server(interceptors=[CallInterceptor(telemetry)], options=options)
        add_JobServiceServicer_to_server(
            JobService(parts.coordinator, parts.store.jobs, parts.shown, parts.notifier), self._server
        )
        add_MetricsServiceServicer_to_server(
            MetricsService(parts.coordinator, parts.store.metrics, parts.notifier, parts.ledgers, parts.dispatcher),
            self._server,
        )
        add_LogServiceServicer_to_server(LogService(parts.coordinator, parts.notifier, logs), self._server)
        add_CheckpointServiceServicer_to_server(
            CheckpointService(parts.coordinator, parts.store.checkpoints, parts.files), self._server
        )
        add_ClusterServiceServicer_to_server(
            ClusterService(parts.coordinator, parts.ledgers, parts.node_samples), self._server
        )
        add_CatalogServiceServicer_to_server(CatalogService(), self._server)
        add_InternalServiceServicer_to_server(
            InternalService(
                parts.coordinator, parts.ledgers, parts.dispatcher, parts.node_samples, logs, launcher_token
            ),
            self._server,
        )
        self._health = StoreHealthServicer(health, PUBLIC_SERVICES)
        self._looking: asyncio.Task[None] | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_reflection()

    def _add_reflection(self) -> None:
        servicer = ReflectionServicer((*PUBLIC_SERVICES, _HEALTH, _REFLECTION_V1ALPHA))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._server)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler})
        self._server.add_generic_rpc_handlers((generic,))

    def bind(self, address: Address) -> Address:
        """Take the port.

        Returns:
            The address with the port that it has.

        Raises:
            StartupError: the port is taken.
        """
        try:
            port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise address.cannot_be_taken("the port is taken or may not be used", "--listen") from error
        return Address(address.host, port)

    async def start(self) -> None:
        """Answer calls."""
        await self._health.look()
        self._looking = keep_running(self._health.keep_looking(), name="health")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and give those under way `grace_s` seconds to end."""
        if self._looking is not None:
            self._looking.cancel()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        await self._health.enter_graceful_shutdown()
        await stopping
