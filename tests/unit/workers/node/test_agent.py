"""The agent of a node, with a coordinator that the test plays over a real socket."""

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.v1.internal_service_pb2 import GpuUse, ReportNodeRequest, ReportNodeResponse
from lockstep.v1.internal_service_pb2_grpc import InternalServiceServicer, add_InternalServiceServicer_to_server
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.v1.telemetry_pb2 import HostTelemetry, NodeTelemetry
from lockstep.workers.node import agent as agent_module
from lockstep.workers.node.agent import Duty, NodeAgent, Sampler

WAIT_S = 20.0


class Coordinator(InternalServiceServicer):
    """Takes samples.

    Attributes:
        requests: what has come.
        tokens: what has come with it.
        uses: what it answers.
        refuses: it answers with an error.
    """

    def __init__(self) -> None:
        self.requests: list[ReportNodeRequest] = []
        self.tokens: list[object] = []
        self.uses: list[GpuUse] = []
        self.refuses = False
        self._changed = threading.Condition()

    def ReportNode(self, request: ReportNodeRequest, context: Any) -> ReportNodeResponse:
        with self._changed:
            self.requests.append(request)
            self.tokens += [value for key, value in context.invocation_metadata() if key == "lockstep-node-token"]
            self._changed.notify_all()
        if self.refuses:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "another server")
        return ReportNodeResponse(gpu_uses=self.uses)

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, WAIT_S)


class Socket:
    """A place where a coordinator serves, or does not."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._server: grpc.Server | None = None
        self.port = 0

    def open(self) -> str:
        self._server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        add_InternalServiceServicer_to_server(self._coordinator, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def socket(coordinator: Coordinator) -> Iterator[Socket]:
    socket = Socket(coordinator)
    yield socket
    socket.close()


def a_sample() -> NodeTelemetry:
    return NodeTelemetry(host=HostTelemetry(cpus=3))


def make_agent(address: str, folder: Path | None = None, sample: Any = a_sample) -> NodeAgent:
    return NodeAgent(
        Duty("node-1", address, "secret", "ours", LauncherOptions(gpu_job_mapping_dir=str(folder or ""))), sample
    )


def test_it_tells_samples_with_its_token_until_it_is_retired(
    coordinator: Coordinator, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "EVERY_S", 0.01)
    agent = make_agent(socket.open())
    running = threading.Thread(target=agent.run)
    running.start()
    coordinator.wait_for(3)
    agent.retire()
    running.join(WAIT_S)
    assert not running.is_alive()
    assert coordinator.requests[0] == ReportNodeRequest(node_id="node-1", telemetry=a_sample())
    assert set(coordinator.tokens) == {"secret"}


def test_what_uses_which_gpu_is_written_down_and_cleared_when_it_is_retired(
    coordinator: Coordinator, socket: Socket, tmp_path: Path
) -> None:
    agent = make_agent(socket.open(), tmp_path)
    coordinator.uses = [GpuUse(index=0, job_id="job-a"), GpuUse(index=3, job_id="job-b")]
    agent.tell()
    assert ((tmp_path / "0").read_text(), (tmp_path / "3").read_text()) == ("job-a\n", "job-b\n")
    agent.retire()
    agent.run()
    assert ((tmp_path / "0").read_text(), (tmp_path / "3").read_text()) == ("", "")


def test_a_coordinator_that_is_away_is_waited_for_and_jobs_go_on_meanwhile(
    coordinator: Coordinator, socket: Socket, tmp_path: Path
) -> None:
    address = socket.open()
    agent = make_agent(address, tmp_path)
    coordinator.uses = [GpuUse(index=0, job_id="job-a")]
    agent.tell()
    socket.close()
    agent.tell()
    coordinator.refuses = True
    assert socket.open() == address
    told = len(coordinator.requests)
    while len(coordinator.requests) == told:  # the connection comes back after a while
        agent.tell()
    assert (tmp_path / "0").read_text() == "job-a\n"
    coordinator.refuses, coordinator.uses = False, []
    agent.tell()
    assert (tmp_path / "0").read_text() == ""


def test_a_sample_that_fails_or_a_folder_that_cannot_be_used_ends_nothing(
    coordinator: Coordinator, socket: Socket, tmp_path: Path
) -> None:
    samples = iter([ValueError("a kernel of another kind"), None, None])

    def sample() -> NodeTelemetry:
        error = next(samples)
        if error is not None:
            raise error
        return a_sample()

    (tmp_path / "file").touch()
    coordinator.uses = [GpuUse(index=0, job_id="job-a")]
    agent = make_agent(socket.open(), tmp_path / "file", sample)
    for _ in range(3):
        agent.tell()
    assert len(coordinator.requests) == 2


def test_a_machine_without_a_gpu_or_a_driver_reports_the_rest() -> None:
    told = Sampler()()
    assert told.host.memory_total_bytes > 0
