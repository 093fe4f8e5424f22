"""What the nodes do: the newest sample of each node's agent, and which job uses which GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.v1.internal_service_pb2 import WorkerProcess
from lockstep.v1.telemetry_pb2 import NodeTelemetry as NodeTelemetryMessage

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
    """

    index: int
    uuid: str
    job_id: str
    attempt: int
    number: int


class NodeTelemetry:
    """The newest sample of each node, for a while. The event loop writes; any thread may read.

    Nothing is kept on disk: after a restart of the server the next samples come within seconds.
    """

    def __init__(
        self,
        nodes: Callable[[], Collection[str]],
        processes: Callable[[], Iterable[WorkerProcess]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to take samples.

        Args:
            nodes: names the nodes that there are, by node_id; samples of others are dropped.
            processes: tells the worker processes that there are.
            now: tells the time in seconds, from any start.
        """
        self._nodes = nodes
        self._processes = processes
        self._now = now
        # Samples are replaced and never changed, and so is the whole, since readers may be in another thread.
        self._samples: dict[str, tuple[float, NodeTelemetryMessage]] = {}

    def take(self, node_id: str, telemetry: NodeTelemetryMessage) -> None:
        """Keep a sample that was checked, in place of the one before."""
        sample = NodeTelemetryMessage()
        sample.CopyFrom(telemetry)
        sample.receive_time.CopyFrom(_this_time())
        taken = self._samples | {node_id: (self._now(), sample)}
        self._samples = self._valid(taken)

    def newest(self, node_id: str) -> NodeTelemetryMessage | None:
        """Return the newest sample of a node; None when nothing has come for a while, or there is no such node."""
        return self.all().get(node_id)

    def all(self) -> dict[str, NodeTelemetryMessage]:
        """Return the newest samples of all nodes that have sent one lately, by node_id."""
        return {node_id: sample for node_id, (_, sample) in self._valid(self._samples).items()}

    def gpu_uses(self, node_id: str) -> list[GpuUse]:
        """Say which jobs use which of a node's GPUs, in the order of the GPUs; nothing without a sample.

        Several workers may share a GPU.
        """
        sample = self.newest(node_id)
        if sample is None:
            return []
        uuids = {gpu.index: gpu.uuid for gpu in sample.gpus}
        uses = [
            GpuUse(index, uuids[index], process.job_id, process.attempt, process.number)
            for process in self._processes()
            if process.node_id == node_id and process.job_id
            for index in gpu_indexes(process, sample)
            if index in uuids
        ]
        return sorted(uses, key=lambda use: (use.index, use.job_id, use.attempt, use.number))

    def _valid(
        self, samples: dict[str, tuple[float, NodeTelemetryMessage]]
    ) -> dict[str, tuple[float, NodeTelemetryMessage]]:
        oldest, nodes = self._now() - FORGOTTEN_AFTER_S, self._nodes()
        return {
            node_id: (time_s, sample)
            for node_id, (time_s, sample) in samples.items()
            if time_s > oldest and node_id in nodes
        }


def gpu_indexes(process: WorkerProcess, sample: NodeTelemetryMessage | None) -> list[int]:
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


def _this_time() -> Timestamp:
    time_now = Timestamp()
    time_now.GetCurrentTime()
    return time_now
