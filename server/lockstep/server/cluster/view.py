"""What the cluster has, what runs where and what is warm: what the coordinator knows, put together by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lockstep.server.jobs.job import State
from lockstep.server.scheduling.scheduler import Amount, Node, amount
from lockstep.v1.internal_service_pb2 import WorkerProcess


@dataclass(frozen=True)
class NodeView:
    """One node and its use.

    Attributes:
        node: what it has.
        held_by_jobs: what gangs hold there, as the coordinator counts it.
        held_by_warm: what workers hold there that wait for a job.
        workers: the worker processes there, those of jobs first.
    """

    node: Node
    held_by_jobs: Amount
    held_by_warm: Amount
    workers: tuple[WorkerProcess, ...]


@dataclass(frozen=True)
class ClusterView:
    """The cluster and its use.

    Attributes:
        why_not_ready: why no job can start now, in words; empty when jobs can.
        nodes: by node_id.
        jobs_running: jobs that have workers.
        jobs_waiting: jobs in the queue.
    """

    why_not_ready: str
    nodes: tuple[NodeView, ...]
    jobs_running: int
    jobs_waiting: int


def view(
    why_not_ready: str,
    nodes: Iterable[Node],
    held: Mapping[str, Amount],
    processes: Iterable[WorkerProcess],
    jobs: Mapping[State, int],
) -> ClusterView:
    """Put together what is known.

    Args:
        why_not_ready: why no job can start now; empty when jobs can.
        nodes: of the cluster.
        held: what gangs hold on each node, by node_id.
        processes: the worker processes that there are; one on a node that is not known is left out.
        jobs: how many stand in each state.
    """
    processes_of: dict[str, list[WorkerProcess]] = defaultdict(list)
    for process in sorted(processes, key=_place):
        processes_of[process.node_id].append(process)
    return ClusterView(
        why_not_ready,
        tuple(
            NodeView(
                node,
                held.get(node.node_id, Amount()),
                _held_by_idle(processes_of[node.node_id]),
                tuple(processes_of[node.node_id]),
            )
            for node in sorted(nodes, key=lambda node: node.node_id)
        ),
        jobs_running=sum(count for state, count in jobs.items() if state.has_workers),
        jobs_waiting=jobs[State.QUEUED],
    )


def worker_state(process: WorkerProcess) -> str:
    """Say what a worker process does: starting, working, warming_up or warm; the contract's WorkerState in small."""
    if process.job_id:
        return "working" if process.pid else "starting"
    return "warm" if process.is_warm else "warming_up"


def _held_by_idle(processes: Iterable[WorkerProcess]) -> Amount:
    held = Amount()
    for process in processes:
        if process.HasField("idle_since"):
            held += amount(process.cpus, process.gpus)
    return held


def _place(process: WorkerProcess) -> tuple[bool, str, int, int, int]:
    """First those of jobs, in order; then those that have waited for longest."""
    idle_ns = process.idle_since.ToNanoseconds()
    return (not process.job_id, process.job_id, process.attempt, process.number, idle_ns)
