"""The cluster as users see it: what there is, what runs where, what is warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from lockstep.server.scheduling import capacity as capacity_module
from lockstep.v1.cluster_service_pb2 import (
    WORKER_STATE_STARTING,
    WORKER_STATE_WARM,
    WORKER_STATE_WARMING_UP,
    WORKER_STATE_WORKING,
    Cluster,
    GetClusterRequest,
    ListNodesRequest,
    Node,
    Resources,
    Worker,
)
from lockstep.v1.internal_service_pb2 import (
    ClusterCapacity,
    LauncherReady,
    NodeCapacity,
    ReportLedgerRequest,
    StartGang,
    WorkerProcess,
    WorkerProcesses,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JOB_STATE_SUCCEEDED
from lockstep.v1.metrics_service_pb2 import GetLedgerRequest
from tests.support.server import Running, ScriptedLauncher, changed, fetch, serving, status_of

NOTHING = Resources()


def cpus(count: float) -> Resources:
    return Resources(cpus=count)


async def cluster_of(server: Running) -> Cluster:
    return await server.cluster.GetCluster(GetClusterRequest())


async def nodes_of(server: Running) -> list[Node]:
    return list((await server.cluster.ListNodes(ListNodesRequest())).nodes)


async def be_ready(server: Running, launcher: ScriptedLauncher, capacity: ClusterCapacity) -> None:
    """Have a launcher come into service with these nodes; returns when the server has heard of them."""
    await launcher.say(ready=LauncherReady(epoch=server.parts.store.cluster.epoch))
    await launcher.say(capacity=capacity)
    await server.parts.dispatcher.cluster_is_ready.wait()


def working(gang: StartGang, number: int, **fields: object) -> WorkerProcess:
    """Make a process that works for a gang on node-a."""
    given = {"node_id": "node-a", "pid": 100 + number, "cpus": 1, "owner": gang.owner} | fields
    return WorkerProcess(job_id=gang.job_id, attempt=gang.attempt, number=number, **given)  # type: ignore[arg-type]


def idle(pid: int, since_s: int, **fields: object) -> WorkerProcess:
    """Make a process on node-a that waits for a job."""
    given = {"node_id": "node-a", "cpus": 1, "is_warm": True} | fields
    return WorkerProcess(pid=pid, idle_since=Timestamp(seconds=since_s), **given)  # type: ignore[arg-type]


async def tell(launcher: ScriptedLauncher, *processes: WorkerProcess) -> None:
    await launcher.say(processes=WorkerProcesses(processes=processes))


async def test_before_a_launcher_is_in_service_the_cluster_says_so_and_counts_who_waits(server: Running) -> None:
    await server.submit()
    cluster = await cluster_of(server)
    assert not cluster.is_ready
    assert "no launcher is in service yet; jobs wait" in cluster.not_ready_reason
    assert (cluster.nodes, cluster.total) == (0, NOTHING)
    assert (cluster.jobs_running, cluster.jobs_waiting) == (0, 1)
    assert await nodes_of(server) == []


async def test_what_others_hold_of_a_node_is_in_all_and_not_usable(server: Running) -> None:
    nodes = [
        NodeCapacity(node_id="b", node_name="shared", cpus=1.5, gpus=1, total_cpus=4, total_gpus=2),
        NodeCapacity(node_id="a", node_name="own", cpus=2, total_cpus=2),
    ]
    launcher = server.launcher()
    await be_ready(server, launcher, ClusterCapacity(nodes=nodes))
    told = await nodes_of(server)
    assert [(node.node_id, node.name) for node in told] == [("a", "own"), ("b", "shared")]
    assert [node.total for node in told] == [cpus(2), Resources(cpus=4, gpus=2)]
    assert [node.usable for node in told] == [cpus(2), Resources(cpus=1.5, gpus=1)]
    cluster = await cluster_of(server)
    assert (cluster.is_ready, cluster.not_ready_reason, cluster.nodes) == (True, "", 2)
    assert (cluster.total, cluster.usable) == (Resources(cpus=6, gpus=2), Resources(cpus=3.5, gpus=1))


async def test_nodes_tell_what_runs_where_and_what_is_warm(server: Running) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=5)
    await server.submit(resources={"workers": 2})
    gang = await launcher.next_start()
    warm = idle(7, since_s=50, owner=gang.owner, memory_bytes=412, data_bytes=55)
    warming = idle(0, since_s=60, is_warm=False)
    fresh = working(gang, 1, pid=0)
    await tell(launcher, warming, warm, fresh, working(gang, 0), working(gang, 0, node_id="gone"))
    await launcher.gang_started(gang)
    await server.until(gang.job_id, lambda job: job.running_workers == 2)

    (node,) = await nodes_of(server)
    assert (node.usable, node.held_by_jobs, node.held_by_warm_workers) == (cpus(5), cpus(2), cpus(2))
    ours: dict[str, Any] = {"job_id": gang.job_id, "attempt": 1, "owner": gang.owner, "resources": cpus(1)}
    assert list(node.workers) == [
        Worker(pid=100, state=WORKER_STATE_WORKING, number=0, **ours),
        Worker(state=WORKER_STATE_STARTING, number=1, **ours),
        Worker(
            pid=7,
            state=WORKER_STATE_WARM,
            owner=gang.owner,
            resources=cpus(1),
            idle_since=Timestamp(seconds=50),
            memory_bytes=412,
            data_bytes=55,
        ),
        Worker(state=WORKER_STATE_WARMING_UP, resources=cpus(1), idle_since=Timestamp(seconds=60)),
    ]
    cluster = await cluster_of(server)
    assert (cluster.held_by_jobs, cluster.held_by_warm_workers) == (cpus(2), cpus(2))
    assert (cluster.jobs_running, cluster.jobs_waiting) == (1, 0)


async def test_what_a_job_holds_is_free_when_its_workers_are_gone(server: Running) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=2)
    await server.submit(resources={"workers": 2})
    gang = await launcher.next_start()
    await launcher.gang_started(gang)
    await launcher.report(gang, 1, digest="abc")
    await tell(launcher, *(idle(pid, since_s=50) for pid in (1, 2)))
    await launcher.gang_stopped(gang)
    await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)
    cluster = await cluster_of(server)
    assert (cluster.held_by_jobs, cluster.held_by_warm_workers, cluster.jobs_running) == (NOTHING, cpus(2), 0)


async def test_while_the_launcher_is_away_what_jobs_hold_is_still_known(server: Running) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=3)
    await server.submit(resources={"workers": 2})
    gang = await launcher.next_start()
    await tell(launcher, working(gang, 0), working(gang, 1), idle(7, since_s=50))
    await launcher.gang_started(gang)
    await server.until(gang.job_id, lambda job: job.running_workers == 2)
    await launcher.leave()
    assert await launcher.call.read() is grpc.aio.EOF

    cluster = await cluster_of(server)
    assert not cluster.is_ready
    assert "jobs that run go on" in cluster.not_ready_reason
    (node,) = await nodes_of(server)
    assert (node.name, node.usable, node.held_by_jobs) == ("node-a", cpus(3), cpus(2))
    assert (node.held_by_warm_workers, list(node.workers)) == (NOTHING, []), "nobody tells of workers"

    launcher = server.launcher()
    await tell(launcher, working(gang, 0), working(gang, 1))
    await launcher.be_ready(cpus=3, gangs=[changed(gang, ["node-a", "node-a"])])
    await server.parts.dispatcher.cluster_is_ready.wait()
    (node,) = await nodes_of(server)
    assert (node.held_by_jobs, [worker.pid for worker in node.workers]) == (cpus(2), [100, 101])
    assert (await cluster_of(server)).is_ready


async def test_pages_list_every_node_once_in_the_order_of_their_ids(server: Running) -> None:
    names = [f"node-{number:04}" for number in range(1001)]
    launcher = server.launcher()
    await be_ready(server, launcher, ClusterCapacity(nodes=[NodeCapacity(node_id=n) for n in reversed(names)]))
    seen: list[str] = []
    request = ListNodesRequest(page_size=500)
    for count in (500, 500, 1):
        page = await server.cluster.ListNodes(request)
        assert len(page.nodes) == count
        assert bool(page.next_page_token) is (count == 500)
        seen += [node.node_id for node in page.nodes]
        request.page_token = page.next_page_token
    assert seen == names
    assert len(await nodes_of(server)) == 100


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ListNodesRequest(page_size=-1), "page_size"),
        (ListNodesRequest(page_size=1001), "page_size"),
        (ListNodesRequest(page_token="mine"), "page_token"),
    ],
)
async def test_pages_that_cannot_be_are_refused(server: Running, request_: ListNodesRequest, field: str) -> None:
    error = await status_of(server.cluster.ListNodes(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.details()


async def test_nodes_whose_hosts_are_called_alike_are_told_apart_wherever_people_see_them(server: Running) -> None:
    launcher = server.launcher()
    hosts = {"11aa22bb33cc": "vm", "44dd55ee66ff": "vm", "77": "raptor", "88": ""}
    capacity = ClusterCapacity(
        nodes=[NodeCapacity(node_id=node_id, node_name=host, cpus=1) for node_id, host in hosts.items()]
    )
    await be_ready(server, launcher, capacity)
    names = ["vm-11aa22bb", "vm-44dd55ee", "raptor", "88"]
    assert [node.name for node in await nodes_of(server)] == names
    page = (await fetch(server.application.http_address, "/metrics"))[1]
    for node_id, name in zip(hosts, names, strict=True):
        assert f'lockstep_node_info{{node="{name}",node_id="{node_id}"}} 1.0' in page
    await server.submit()
    gang = await launcher.next_start()
    await launcher.report(gang, 1)
    told = ReportLedgerRequest(job_id=gang.job_id, attempt=1, sequence=1, node_id="44dd55ee66ff")
    told.step_duration_counts.extend([0] * 16)
    metadata = (("lockstep-attempt-token", gang.attempt_token),)
    await InternalServiceStub(server.channel).ReportLedger(told, metadata=metadata)
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    assert ledger.ranks[0].node_name == "vm-44dd55ee"
    # The launcher knows nodes by their ids alone.
    words = "worker 0 on node {} died: its node is gone; 1 worker goes on"
    await launcher.gang_changed(gang, ["77"], message=words.format("44dd55ee66ff"))
    assert words.format("vm-44dd55ee") in await server.messages(gang.job_id, 4)
    await launcher.say(capacity=ClusterCapacity(nodes=[capacity.nodes[2]]))
    await server.parts.dispatcher.cluster_is_ready.wait()
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    assert ledger.ranks[0].node_name == "vm-44dd55ee", "also when it is gone"


def test_ids_of_nodes_that_begin_alike_are_shown_as_far_as_it_takes() -> None:
    ids = ("a" * 16 + "1", "a" * 16 + "2", "b" * 17)
    capacity = ClusterCapacity(nodes=[NodeCapacity(node_id=node_id, node_name="vm", cpus=1) for node_id in ids])
    assert [node.name for node in capacity_module.nodes_of(capacity)] == [f"vm-{ids[0]}", f"vm-{ids[1]}", "vm-bbbbbbbb"]


async def test_a_server_tells_when_its_cluster_is_ready_and_a_launcher_that_is_gone_unless_it_was_told_to_stop(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path) as server:
            await server.launcher().be_ready()
            await server.parts.dispatcher.cluster_is_ready.wait()
            submit = f"lockstep --target {server.application.grpc_address} submit -f SPEC"  # not the usual port
        told = [line["event"] for line in logs]
        assert f"the cluster is ready: 2 CPUs; submit jobs with: {submit}" in told
        assert "the launcher is gone" not in told
        logs.clear()
        async with serving(tmp_path) as server:
            launcher = server.launcher()
            await launcher.be_ready()
            await server.parts.dispatcher.cluster_is_ready.wait()
            await launcher.leave()
            while server.parts.dispatcher.has_launcher:
                await cluster_of(server)  # lets the server notice
        assert "the launcher is gone" in [line["event"] for line in logs]
