"""More connections than a process may have: those that are too many are told, and everything else goes on."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.server.grpc_server import most_connections
from lockstep.v1.internal_service_pb2 import ReportLogsRequest
from lockstep.v1.job_service_pb2 import ListJobsRequest
from lockstep.v1.log_service_pb2 import LogLine
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.contract.test_metrics import start_job
from tests.unit.server.harness import run, serving

# Opens connections, says how many of them the server greets and how many it closes, and holds them.
CROWD = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
greeting = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
held, greeted, closed = [], 0, 0
for _ in range(count):
    connection = socket.create_connection((host, port))
    connection.settimeout(20)
    held.append(connection)
    try:
        connection.sendall(greeting)
        answer = connection.recv(9)
    except ConnectionError:
        answer = b""
    greeted, closed = greeted + bool(answer), closed + (not answer)
print(greeted, closed, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_leave_descriptors_for_the_store_and_the_logs(tmp_path: Path, few_descriptors: None) -> None:
    async def scenario() -> None:
        assert most_connections() == 150
        async with serving(tmp_path) as server:
            launcher, gang = await start_job(server)
            host, _, port = server.application.grpc_address.rpartition(":")
            crowd = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CROWD, host, port, "290", stdin=-1, stdout=asyncio.subprocess.PIPE
            )
            assert crowd.stdout is not None
            greeted, closed = map(int, (await crowd.stdout.readline()).split())
            assert greeted + closed == 290
            assert 100 <= greeted <= 150
            await asyncio.gather(*(server.jobs.ListJobs(ListJobsRequest()) for _ in range(20)))
            request = ListMetricsRequest(job_id=gang.job_id)
            await asyncio.gather(*(server.metrics.ListMetrics(request) for _ in range(20)))
            line = ReportLogsRequest(job_id=gang.job_id, attempt=1, number=0, lines=[LogLine(text="hello")], ends=[6])
            await launcher._stub.ReportLogs(line, metadata=(("lockstep-attempt-token", gang.attempt_token),))
            await crowd.communicate(b"")

    run(scenario())
