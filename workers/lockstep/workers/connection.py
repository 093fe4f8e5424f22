"""The connection of a worker process to the coordinator: one, from one job to the next."""

import threading

import grpc

from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub

OPTIONS = (
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A proxy in the environment leads out to the world, and never to the coordinator.
    ("grpc.enable_http_proxy", 0),
)
FINAL_CODES = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Answers that the same report would get again."""


class Connection:
    """A channel that is opened when it is needed, and stays open. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address = ""
        self._channel: grpc.Channel | None = None

    def stub(self, address: str) -> InternalServiceStub:
        """For calls to the coordinator at host:port.

        It has moved when this is another address than before: calls that are under way to the old one end with an
        error then, and stubs for it raise ValueError.
        """
        with self._lock:
            if self._channel is None or address != self._address:
                if self._channel is not None:
                    self._channel.close()
                self._address, self._channel = address, grpc.insecure_channel(address, options=OPTIONS)
            return InternalServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; it is opened again when it is needed."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None


COORDINATOR = Connection()
"""That of this process."""
