"""The HTTP port: /metrics for Prometheus, /healthz for whoever looks after the process."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from lockstep.server.settings import Address
from lockstep.server.telemetry.page import KeptPage

_MOST_REQUESTS = 64

log = structlog.get_logger(__name__)

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # The default allows two servers on one port when the first has just ended; a live one is still refused.
    allow_reuse_address = True
    # Connections that wait to be taken. Beyond the default of 5 the system drops the first packet, and clients send the
    # next one after a second.
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.Semaphore(_MOST_REQUESTS)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Close a connection at once when too many are open: each holds a thread and a file."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell of what failed, but not of clients that hung up or say nothing: nobody could mend that."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("an HTTP request failed", exc_info=error)


class _Handler(WSGIRequestHandler):
    # A client that says nothing would hold its thread for ever.
    timeout = 10

    def get_stderr(self) -> io.StringIO:
        """Drop tracebacks of clients that stop to read; what a page of ours has failed at, it says itself."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a scrape every few seconds would drown the log."""


class HttpServer:
    """Serves both pages from threads of its own."""

    def __init__(self, address: Address, registry: CollectorRegistry, why_unwell: Callable[[], str]) -> None:
        """Take the port.

        Args:
            address: of the port.
            registry: what /metrics shows.
            why_unwell: what is wrong, for /healthz; empty when all is well. It may block.

        Raises:
            StartupError: the port is taken.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each one, of which Prometheus makes nothing
        self._metrics = KeptPage(make_wsgi_app(registry))
        self._why_unwell, self._is_well = why_unwell, True
        try:
            self._server = make_server(
                address.host, address.port, self._respond, server_class=_Server, handler_class=_Handler
            )
        except OSError as error:
            raise address.cannot_be_taken(error.strerror, "--http") from error
        self.address = Address(address.host, self._server.server_port)
        self._thread = threading.Thread(target=self._serve, name="lockstep-http", daemon=True)

    def _serve(self) -> None:
        # `stop` wakes it by a connection, so that an idle server need not wake up twice a second to look.
        self._server.serve_forever(poll_interval=3600)

    def start(self) -> None:
        """Answer requests."""
        self._thread.start()

    def fail_health(self) -> None:
        """Answer 503 on /healthz from now on."""
        self._is_well = False

    def stop(self) -> None:
        """Close the port."""
        if self._thread.is_alive():
            stopping = threading.Thread(target=self._server.shutdown)
            stopping.start()
            while self._thread.is_alive():
                with contextlib.suppress(OSError):
                    socket.create_connection((self.address.host, self.address.port), timeout=1).close()
                self._thread.join(timeout=0.05)
            stopping.join()
        self._server.server_close()

    def _respond(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            try:
                return self._metrics(environ, start_response)
            except Exception as error:  # the event loop is busy, or ends
                log.warning("a scrape was not answered", error=f"{type(error).__name__}: {error}")
                status, body = "503 Service Unavailable", b"the server is busy\n"
        elif path == "/healthz":
            why = self._why_unwell() if self._is_well else "shutting down"
            status, body = ("503 Service Unavailable", f"{why}\n".encode()) if why else ("200 OK", b"ok\n")
        else:
            status, body = "404 Not Found", b"there are /metrics and /healthz\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]
