"""What most of these tests begin with: a server, a launcher in service, and a gang that it was told to start."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lockstep.v1.internal_service_pb2 import StartGang
from tests.support.server import Running, ScriptedLauncher, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """A server whose cluster is played by the test."""
    async with serving(tmp_path) as server:
        yield server


@pytest.fixture
async def launcher(server: Running) -> ScriptedLauncher:
    """Its launcher, in service with one node of two CPUs."""
    launcher = server.launcher()
    await launcher.be_ready()
    return launcher


@pytest.fixture
async def gang(server: Running, launcher: ScriptedLauncher) -> StartGang:
    """The order to start the workers of a small job that was submitted."""
    await server.submit()
    return await launcher.next_start()
