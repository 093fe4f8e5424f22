"""ClusterService: nodes, what runs where, and what is warm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from lockstep.contract.spec.resources import UNITS
from lockstep.server.cluster.nodes import NodeSamples, gpu_indexes
from lockstep.server.cluster.view import NodeView, worker_state
from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.rpc.interceptors import Context
from lockstep.server.rpc.paging import make_token, page_size, read_token
from lockstep.server.scheduling.scheduler import Amount
from lockstep.v1 import cluster_service_pb2
from lockstep.v1.cluster_service_pb2 import (
    Cluster,
    GetClusterRequest,
    ListNodesRequest,
    ListNodesResponse,
    Node,
    Resources,
    Worker,
)
from lockstep.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from lockstep.v1.internal_service_pb2 import WorkerProcess
from lockstep.v1.telemetry_pb2 import NodeTelemetry

_SCOPE = ["nodes"]
_STATES = {
    name.removeprefix("WORKER_STATE_").lower(): cast("cluster_service_pb2.WorkerState", number)
    for name, number in cluster_service_pb2.WorkerState.items()
}


class ClusterService(ClusterServiceServicer):
    """The cluster that jobs run on."""

    def __init__(self, coordinator: Coordinator, ledgers: JobLedgers, node_samples: NodeSamples) -> None:
        self._coordinator = coordinator
        self._ledgers = ledgers
        self._node_samples = node_samples

    async def GetCluster(self, request: GetClusterRequest, context: Context) -> Cluster:
        cluster = self._coordinator.look_at_cluster()
        nodes = cluster.nodes
        return Cluster(
            is_ready=not cluster.why_not_ready,
            not_ready_reason=cluster.why_not_ready,
            nodes=len(nodes),
            total=_sum(node.node.total for node in nodes),
            usable=_sum(node.node.usable for node in nodes),
            held_by_jobs=_sum(node.held_by_jobs for node in nodes),
            held_by_warm_workers=_sum(node.held_by_warm for node in nodes),
            jobs_running=cluster.jobs_running,
            jobs_waiting=cluster.jobs_waiting,
        )

    async def ListNodes(self, request: ListNodesRequest, context: Context) -> ListNodesResponse:
        limit = page_size(request.page_size, default=100, most=1000)
        position = read_token(request.page_token, "page_token", _SCOPE, (str,))
        nodes = self._coordinator.look_at_cluster().nodes
        if position is not None:
            nodes = tuple(node for node in nodes if node.node.node_id > position[0])
        telemetry = self._node_samples.all()
        pairs = [(node, telemetry.get(node.node.node_id)) for node in nodes[:limit]]
        response = ListNodesResponse(nodes=[self._node_to_proto(node, sample) for node, sample in pairs])
        if len(nodes) > limit:
            response.next_page_token = make_token([nodes[limit - 1].node.node_id], _SCOPE)
        return response

    def _node_to_proto(self, view: NodeView, sample: NodeTelemetry | None) -> Node:
        node = _node_to_proto(view, sample)
        for worker in node.workers:
            rank = self._ledgers.rank_of(worker.job_id, worker.attempt, worker.number)
            if rank is not None:
                worker.rank = rank
        return node


def _sum(amounts: Iterable[Amount]) -> Resources:
    return _resources(sum(amounts, start=Amount()))


def _resources(amount: Amount) -> Resources:
    return Resources(cpus=amount.cpu / UNITS, gpus=amount.gpu / UNITS)


def _node_to_proto(view: NodeView, sample: NodeTelemetry | None) -> Node:
    return Node(
        node_id=view.node.node_id,
        name=view.node.name,
        total=_resources(view.node.total),
        usable=_resources(view.node.usable),
        held_by_jobs=_resources(view.held_by_jobs),
        held_by_warm_workers=_resources(view.held_by_warm),
        workers=[_worker_to_proto(process, sample) for process in view.workers],
        telemetry=sample,
    )


def _worker_to_proto(process: WorkerProcess, sample: NodeTelemetry | None) -> Worker:
    worker = Worker(
        pid=process.pid,
        resources=Resources(cpus=process.cpus, gpus=process.gpus),
        state=_STATES[worker_state(process)],
        owner=process.owner if process.HasField("owner") else None,
        idle_since=process.idle_since if process.HasField("idle_since") else None,
        memory_bytes=process.memory_bytes,
        data_bytes=process.data_bytes,
        gpu_indexes=gpu_indexes(process, sample),
    )
    if process.job_id:
        worker.job_id, worker.attempt, worker.number = process.job_id, process.attempt, process.number
    return worker
