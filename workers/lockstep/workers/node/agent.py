"""The actor of a node: measures its machine and GPUs every two seconds and tells the coordinator.

It holds no CPU and no GPU, and ends with its launcher, whose successor starts another one. Nothing depends on it.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import ray
import structlog

from lockstep.contract.metadata import NODE_TOKEN
from lockstep.v1.internal_service_pb2 import ReportNodeRequest
from lockstep.v1.launcher_pb2 import LauncherOptions, LauncherSettings
from lockstep.v1.telemetry_pb2 import NodeTelemetry
from lockstep.workers.connection import Connection
from lockstep.workers.node.gpus import Gpus
from lockstep.workers.node.host import Host
from lockstep.workers.node.mapping import JobMapping

EVERY_S = 2.0
ANSWER_TIMEOUT_S = 5.0
"""How long the coordinator may take to answer."""

log = structlog.get_logger()


class Duty(NamedTuple):
    """What an agent is told.

    Attributes:
        node_id: Ray's id of its node, hex.
        coordinator_address: where it reports, host:port.
        node_token: proves there that it is an agent.
        owner: of what it writes on its node: the Ray namespace.
        options: what the operator has set.
    """

    node_id: str
    coordinator_address: str
    node_token: str
    owner: str
    options: LauncherOptions


def duty_of(settings: LauncherSettings, node_id: str) -> Duty:
    """What the agent of a node is told."""
    return Duty(node_id, settings.reports_address, settings.node_token, settings.namespace, settings.options)


class NodeAgent:
    """One node's agent.

    Args:
        duty: what it is told.
        sample: measures the node.
    """

    def __init__(self, duty: Duty, sample: Callable[[], NodeTelemetry] | None = None) -> None:
        self._duty = duty
        self._sample = sample or Sampler()
        folder = duty.options.gpu_job_mapping_dir
        self._mapping = JobMapping(Path(folder), duty.owner) if folder else None
        self._connection = Connection()
        self._retired = threading.Event()
        self._trouble = ""

    def run(self) -> None:
        """Measure and tell, until the agent is retired or its process is ended."""
        due = time.monotonic()
        while not self._retired.wait(max(0.0, due - time.monotonic())):
            due = max(due + EVERY_S, time.monotonic())
            self.tell()
        self._write_mapping([])
        self._connection.close()

    def retire(self) -> None:
        """Have `run` return; no job uses this node any more."""
        self._retired.set()

    def tell(self) -> None:
        """Measure and tell once. What cannot be told is left: the next sample says more."""
        try:
            request = ReportNodeRequest(node_id=self._duty.node_id, telemetry=self._sample())
            metadata = ((NODE_TOKEN, self._duty.node_token),)
            stub = self._connection.stub(self._duty.coordinator_address)
            answer = stub.ReportNode(request, timeout=ANSWER_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            self._note_trouble(f"{error.code().name}: {error.details()}")
        except Exception as error:  # a kernel or a driver that tells what nobody expects
            self._note_trouble(f"{type(error).__name__}: {error}")
        else:
            self._note_trouble("")
            self._write_mapping([(use.index, use.job_id) for use in answer.gpu_uses])

    def _write_mapping(self, uses: list[tuple[int, str]]) -> None:
        if self._mapping is None:
            return
        try:
            self._mapping.write(uses)
        except OSError as error:
            self._note_trouble(f"job mapping files cannot be written: {error}")

    def _note_trouble(self, trouble: str) -> None:
        """Log trouble when it begins, changes or ends, and not every two seconds."""
        if trouble != self._trouble:
            log.warning("node telemetry", node_id=self._duty.node_id, trouble=trouble or "is over")
        self._trouble = trouble


class Sampler:
    """Measures this node."""

    def __init__(self) -> None:
        node = ray._private.worker._global_node  # none outside of Ray
        self._host = Host(Path(node.get_session_dir_path() if node else tempfile.gettempdir()))
        self._gpus = Gpus()

    def __call__(self) -> NodeTelemetry:
        """What the machine and its GPUs do now."""
        return NodeTelemetry(host=self._host.sample(), gpus=self._gpus.sample())
