"""The port of /metrics and /healthz."""

from __future__ import annotations

import contextlib
import socket

from prometheus_client import CollectorRegistry

from lockstep.server.http import HttpServer
from lockstep.server.settings import Address

MANY = 100
RETRY_S = 1.0
"""After which a system sends the first packet of a connection again, if it was dropped."""


def test_many_connections_may_wait_to_be_taken() -> None:
    server = HttpServer(Address("127.0.0.1", 0), CollectorRegistry(), lambda: "")
    with contextlib.ExitStack() as connections:
        connections.callback(server.stop)
        for _ in range(MANY):  # nobody takes them before it is started
            address = (server.address.host, server.address.port)
            connections.enter_context(socket.create_connection(address, timeout=RETRY_S / 2))
