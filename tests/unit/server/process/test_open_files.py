"""Open files: the limit, what is kept back of it, and the words when it comes near."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from lockstep.server import http
from lockstep.server.process import open_files
from lockstep.v1.job_service_pb2 import ListJobsRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from tests.support.server import fetch, serving


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process have some hundred files more than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 400
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_to_what_is_allowed() -> None:
    code = (
        "import resource; from lockstep.server.process.open_files import raise_limit; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512)); "
        "print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "512 512 512\n"


async def test_idle_connections_leave_the_server_files_to_open(
    tmp_path: Path, few_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "raise_limit", lambda: few_files)

    async with serving(tmp_path) as server:
        await server.submit()
        host, _, port = server.application.grpc_address.rpartition(":")
        script = (
            "import socket, sys\n"
            "idle = []\n"
            "try:\n"
            f"    for _ in range({few_files + 200}): idle.append(socket.create_connection(({host!r}, {port})))\n"
            "finally:\n"
            "    print(flush=True)\n"
            "    input()\n"
        )
        clients = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert clients.stdout is not None
        await clients.stdout.readline()
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        await asyncio.gather(*(server.jobs.ListJobs(ListJobsRequest()) for _ in range(20)))
        await server.submit()
        for descriptor in opened:
            os.close(descriptor)
        clients.terminate()
        await clients.wait()


async def logged(logs: list[EventDict], count: int) -> None:
    while True:  # no event tells of a log line
        if len(logs) >= count:
            return
        await asyncio.sleep(0)


async def test_a_word_is_said_when_open_files_come_near_the_limit_and_when_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_files, "_LOOK_EVERY_S", 0.0)

    with capture_logs() as logs, contextlib.ExitStack() as files:
        limit = len(list(Path("/proc/self/fd").iterdir())) * 2 + 20
        watching = asyncio.create_task(open_files.watch(limit))
        for _ in range(limit):
            files.enter_context(socket.socket())
        await logged(logs, 1)
        files.close()
        await logged(logs, 2)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert logs[0]["limit"] == limit


async def test_the_watch_goes_on_when_no_file_is_left_to_count_them_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_LOOK_EVERY_S", 0.0)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    await asyncio.to_thread(open_files._count)  # what a first use opens is open
    with capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        watching = asyncio.create_task(open_files.watch(1_000))
        try:
            await asyncio.wait([watching, near := asyncio.create_task(logged(logs, 1))], return_when="FIRST_COMPLETED")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            near.cancel()
        assert not watching.done()
        await logged(logs, 2)
        watching.cancel()
        await asyncio.gather(watching, near, return_exceptions=True)
    assert [line["log_level"] for line in logs] == ["warning", "info"]


async def test_one_more_client_than_there_is_room_for_is_told_so_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "most_connections", lambda limit: 1)

    async with serving(tmp_path) as server:
        await server.jobs.ListJobs(ListJobsRequest())
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(server.application.grpc_address, options=options) as other:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await JobServiceStub(other).ListJobs(ListJobsRequest(), timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_idle_connections_of_the_http_port_are_bounded_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http._Handler, "timeout", 0.5)

    async with serving(tmp_path) as server:
        host, _, port = server.application.http_address.rpartition(":")

        def crowd() -> int:
            """Connect often and say nothing; how many are hung up on at once."""
            idle = [socket.create_connection((host, int(port))) for _ in range(http._MOST_REQUESTS + 20)]
            closed = 0
            for client in reversed(idle):
                client.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    closed += client.recv(1) == b""
                if closed == 20:
                    break
            for client in idle:
                client.close()
            return closed

        assert await asyncio.to_thread(crowd) == 20
        while True:  # no event tells that their time is over
            with contextlib.suppress(OSError):
                assert (await fetch(server.application.http_address, "/healthz"))[0] == 200
                break
