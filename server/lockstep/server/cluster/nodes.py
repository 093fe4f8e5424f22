"""What the nodes do: the newest sample of each node's agent, and which job uses which GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lockstep.contract.spec.resources import UNITS
from lockstep.server.scheduling.scheduler import Node, amount
from lockstep.v1.internal_service_pb2 import WorkerProcess
from lockstep.v1.telemetry_pb2 import NodeTelemetry

FORGOTTEN_AFTER_S = 10.0
"""How long a sample counts: five times the time between two."""


@dataclass(frozen=True)
class GpuUse:
    """A GPU that a worker of a job holds.

    Attributes:
        index: number of the GPU on its node, as NVML counts.
        uuid: of the GPU.
        job_id: the job.
        attempt: its attempt.
        number: the worker's number in that.
        share: how much of the GPU the worker holds, in ten-thousandths.
    """

    index: int
    uuid: str
    job_id: str
    attempt: int
    number: int
    share: int


class _Sample(NamedTuple):
    """A sample, and when it was taken."""

    taken_at: float
    message: NodeTelemetry


class NodeSamples:
    """The newest sample of each node, for a while. The event loop writes; any thread may read.

    Nothing is kept on disk: after a restart of the server the next samples come within seconds.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        processes: Callable[[], Iterable[WorkerProcess]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to take samples.

        Args:
            nodes: tells the nodes that there are; samples of others are dropped.
            processes: tells the worker processes that there are.
            now: tells the time in seconds, from any start.
        """
        self._nodes = nodes
        self._processes = processes
        self._now = now
        # A sample is replaced and never changed, since readers may be in another thread.
        self._samples: dict[str, _Sample] = {}

    def take(self, node_id: str, telemetry: NodeTelemetry) -> None:
        """Keep a sample that was checked, in place of the one before."""
        message = NodeTelemetry()
        message.CopyFrom(telemetry)
        message.receive_time.GetCurrentTime()
        self._samples[node_id] = _Sample(self._now(), message)
        if len(self._samples) > len(self._nodes()):
            valid = self.all()
            self._samples = {node_id: sample for node_id, sample in self._samples.items() if node_id in valid}

    def newest(self, node_id: str) -> NodeTelemetry | None:
        """Return the newest sample of a node; None when nothing has come for a while, or there is no such node."""
        sample = self._samples.get(node_id)
        is_there = any(node.node_id == node_id for node in self._nodes())
        return sample.message if sample is not None and is_there and self._counts(sample) else None

    def all(self) -> dict[str, NodeTelemetry]:
        """Return the newest samples of all nodes that have sent one lately, by node_id."""
        there = {node.node_id for node in self._nodes()}
        return {
            node_id: sample.message
            for node_id, sample in list(self._samples.items())
            if node_id in there and self._counts(sample)
        }

    def _counts(self, sample: _Sample) -> bool:
        return self._now() - sample.taken_at < FORGOTTEN_AFTER_S

    def gpu_uses(self, node_id: str) -> list[GpuUse]:
        """Say which jobs use which of a node's GPUs, in the order of the GPUs; nothing without a sample.

        Several workers may share a GPU.
        """
        sample = self.newest(node_id)
        if sample is None or not sample.gpus:
            return []
        uuids = {gpu.index: gpu.uuid for gpu in sample.gpus}
        uses = [
            GpuUse(index, uuids[index], process.job_id, process.attempt, process.number, _share(process))
            for process in self._processes()
            if process.node_id == node_id and process.job_id
            for index in gpu_indexes(process, sample)
            if index in uuids
        ]
        return sorted(uses, key=lambda use: (use.index, use.job_id, use.attempt, use.number))


def _share(process: WorkerProcess) -> int:
    """Of each of its GPUs."""
    return min(UNITS, amount(process.cpus, process.gpus).gpu)


def gpu_indexes(process: WorkerProcess, sample: NodeTelemetry | None) -> list[int]:
    """Return the numbers of the GPUs that a process holds, as NVML counts.

    Args:
        process: names its GPUs as Ray does: by number, or by UUID, which may be cut short. Those that cannot be told
            are left out.
        sample: of its node, which has the UUIDs; None when there is none.
    """
    indexes: set[int] = set()
    for gpu_id in process.gpu_ids:
        if gpu_id.isascii() and gpu_id.isdecimal() and len(gpu_id) < 6:
            indexes.add(int(gpu_id))
        elif sample is not None and gpu_id:
            found = [gpu.index for gpu in sample.gpus if gpu.uuid.startswith(gpu_id)]
            indexes.update(found if len(found) == 1 else ())
    return sorted(indexes)
