"""What the server tells of its cluster, as plain typed values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from lockstep.client.telemetry import NodeTelemetry
from lockstep.client.types import to_datetime
from lockstep.contract.spec.resources import gpus_of
from lockstep.v1 import cluster_service_pb2
from lockstep.v1.job_spec_pb2 import ResourcesSpec


class WorkerState(StrEnum):
    """What a worker process does: STARTING or WORKING for a job; without one it is WARMING_UP or WARM."""

    UNSPECIFIED = "UNSPECIFIED"
    STARTING = "STARTING"
    WORKING = "WORKING"
    WARMING_UP = "WARMING_UP"
    WARM = "WARM"

    @classmethod
    def from_proto(cls, value: cluster_service_pb2.WorkerState) -> WorkerState:
        if value in cluster_service_pb2.WorkerState.values():
            return cls(cluster_service_pb2.WorkerState.Name(value).removeprefix("WORKER_STATE_"))
        return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Resources:
    """CPUs and GPUs; shares of one are possible."""

    cpus: float
    gpus: float

    @classmethod
    def from_proto(cls, resources: cluster_service_pb2.Resources) -> Self:
        return cls(resources.cpus, resources.gpus)


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process.

    Attributes:
        pid: its number on its node; 0 while it is not known.
        resources: what it holds of its node.
        state: what it does.
        job_id: the job that it works for; empty while it has none.
        attempt: the job's attempt, from 1; 0 while it has no job.
        number: its number within the attempt, from 0; None while it has no job.
        rank: its rank when it was heard of last; None while it has no job or has not joined.
        owner: of the jobs that it works for or has worked for; None when it has for nobody.
        idle_since: since when it waits for a job, UTC; None while it has one.
        memory_bytes: memory of its process when it waited last; 0 if it never has.
        data_bytes: data that it keeps for the next job.
        gpu_indexes: the GPUs that it holds, as GpuTelemetry.index counts; none while they are not known.
    """

    pid: int
    resources: Resources
    state: WorkerState
    job_id: str
    attempt: int
    number: int | None
    rank: int | None
    owner: str | None
    idle_since: datetime | None
    memory_bytes: int
    data_bytes: int
    gpu_indexes: tuple[int, ...]

    @classmethod
    def from_proto(cls, worker: cluster_service_pb2.Worker) -> Self:
        return cls(
            worker.pid,
            Resources.from_proto(worker.resources),
            WorkerState.from_proto(worker.state),
            worker.job_id,
            worker.attempt,
            worker.number if worker.HasField("number") else None,
            worker.rank if worker.HasField("rank") else None,
            worker.owner if worker.HasField("owner") else None,
            to_datetime(worker.idle_since) if worker.HasField("idle_since") else None,
            worker.memory_bytes,
            worker.data_bytes,
            tuple(worker.gpu_indexes),
        )


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        node_id: Ray's id of it, hex.
        name: name or address, for people.
        total: what it has.
        usable: what Lockstep may use of it: all, less what others on the same Ray cluster hold.
        held_by_jobs: what jobs hold of the usable.
        held_by_warm_workers: what workers hold that wait for a job; given up at once to a job that needs it.
        workers: its worker processes, those of jobs first; none while no launcher is in service.
        telemetry: what its agent measured last; None when nothing has come for a while.
    """

    node_id: str
    name: str
    total: Resources
    usable: Resources
    held_by_jobs: Resources
    held_by_warm_workers: Resources
    workers: tuple[Worker, ...]
    telemetry: NodeTelemetry | None

    def room_for(self, resources: ResourcesSpec) -> int:
        """How many workers of a job it takes while nothing else runs on it."""
        cpus, gpus = resources.cpus_per_worker, gpus_of(resources)
        counts = [math.floor(round(self.total.cpus / cpus, 6))] if cpus > 0 else []
        if gpus >= 1:
            counts.append(math.floor(self.total.gpus / gpus))
        elif gpus > 0:  # a share has to be of one GPU
            counts.append(math.floor(self.total.gpus) * math.floor(round(1 / gpus, 6)))
        return min(counts, default=0)

    @classmethod
    def from_proto(cls, node: cluster_service_pb2.Node) -> Self:
        return cls(
            node.node_id,
            node.name,
            Resources.from_proto(node.total),
            Resources.from_proto(node.usable),
            Resources.from_proto(node.held_by_jobs),
            Resources.from_proto(node.held_by_warm_workers),
            tuple(map(Worker.from_proto, node.workers)),
            NodeTelemetry.from_proto(node.telemetry) if node.HasField("telemetry") else None,
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster as a whole.

    Attributes:
        is_ready: jobs can start; else those that run go on, and others wait.
        not_ready_reason: why not; empty while it is ready.
        nodes: number of nodes.
        total: what they have; this and the others mean what they mean in Node.
        usable: what Lockstep may use of it.
        held_by_jobs: what jobs hold of that.
        held_by_warm_workers: what workers hold that wait for a job.
        jobs_running: jobs that have workers.
        jobs_waiting: jobs in the queue.
    """

    is_ready: bool
    not_ready_reason: str
    nodes: int
    total: Resources
    usable: Resources
    held_by_jobs: Resources
    held_by_warm_workers: Resources
    jobs_running: int
    jobs_waiting: int

    @classmethod
    def from_proto(cls, cluster: cluster_service_pb2.Cluster) -> Self:
        return cls(
            cluster.is_ready,
            cluster.not_ready_reason,
            cluster.nodes,
            Resources.from_proto(cluster.total),
            Resources.from_proto(cluster.usable),
            Resources.from_proto(cluster.held_by_jobs),
            Resources.from_proto(cluster.held_by_warm_workers),
            cluster.jobs_running,
            cluster.jobs_waiting,
        )
