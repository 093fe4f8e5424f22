"""A coordinator that takes what workers print, and something that prints."""

import os
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from lockstep.v1.internal_service_pb2 import ReportLogsRequest, ReportLogsResponse
from lockstep.v1.internal_service_pb2_grpc import InternalServiceServicer, add_InternalServiceServicer_to_server
from lockstep.workers.logs.spool import Label, Spool

LABEL = Label("job-1", 2, 3, "the token")


class Coordinator(InternalServiceServicer):
    """Takes lines, and answers as the test wants."""

    def __init__(self) -> None:
        self.requests: list[ReportLogsRequest] = []
        self.tokens: set[Any] = set()
        self.code: grpc.StatusCode | None = None
        self.code_by_job: dict[str, grpc.StatusCode] = {}
        self.calls = 0
        self.changed = threading.Condition()

    def ReportLogs(self, request: ReportLogsRequest, context: Any) -> ReportLogsResponse:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
            code = self.code_by_job.get(request.job_id, self.code)
            if code is not None:
                context.abort(code, "as the test wants")
            self.requests.append(request)
            self.tokens.add(dict(context.invocation_metadata())["lockstep-attempt-token"])
        return ReportLogsResponse()

    def lines(self) -> list[tuple[int | None, str]]:
        """All that has arrived, as (rank, text)."""
        found = [line for request in self.requests for line in request.lines]
        return [(line.rank if line.HasField("rank") else None, line.text) for line in found]

    def texts(self) -> list[str]:
        return [text for _, text in self.lines()]

    def wait_for(self, text: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: text in self.texts(), 20), self.texts()


@contextmanager
def serving_logs() -> Iterator[tuple[Coordinator, str]]:
    """A coordinator and its address."""
    servicer = Coordinator()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_InternalServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def say(spool: Spool, text: str | bytes) -> None:
    os.write(spool.data, text if isinstance(text, bytes) else text.encode())
