"""The cluster, for programs and on the command line."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lockstep.client import Client, Resources, WorkerState
from lockstep.client import telemetry as client_types
from lockstep.client.cluster import Node
from lockstep.v1 import cluster_service_pb2 as pb
from lockstep.v1.job_spec_pb2 import ResourcesSpec
from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry, NodeTelemetry
from tests.support.scripted_server import ScriptedServer, nodes
from tests.unit.client.conftest import Lockstep

FOUR = {"cpus": 4.0}
MEGABYTE = 10**6


def a_cluster(**fields: Any) -> pb.Cluster:
    return pb.Cluster(**({"is_ready": True, "nodes": 1, "jobs_running": 1} | fields))


def a_node(*workers: pb.Worker, node_id: str = "n-1", name: str = "raptor", **fields: Any) -> pb.Node:
    given = {
        "total": FOUR,
        "usable": FOUR,
        "held_by_jobs": {"cpus": 3.0},
        "held_by_warm_workers": {"cpus": 1.0},
    } | fields
    return pb.Node(node_id=node_id, name=name, workers=workers, **given)


def a_worker(state: str, **fields: Any) -> pb.Worker:
    return pb.Worker(state=f"WORKER_STATE_{state}", resources=fields.pop("resources", {"cpus": 1.0}), **fields)


def warm(idle_s: float, **fields: Any) -> pb.Worker:
    worker = a_worker("WARM", **({"pid": 7, "memory_bytes": 412 * MEGABYTE, "data_bytes": 55 * MEGABYTE} | fields))
    worker.idle_since.FromDatetime(datetime.now(UTC) - timedelta(seconds=idle_s))
    return worker


@pytest.fixture
def busy(server: ScriptedServer) -> ScriptedServer:
    """A server whose cluster is at work."""
    server.on("GetCluster", a_cluster(total=FOUR, usable=FOUR, jobs_waiting=2))
    working = [a_worker("WORKING", pid=100 + n, job_id="job-1a", attempt=1, number=n, owner="local") for n in range(2)]
    starting = a_worker("STARTING", job_id="job-1a", attempt=1, number=2, owner="local")
    server.on("ListNodes", nodes(a_node(*working, starting, warm(12.3))))
    return server


def test_the_cluster_is_told_as_plain_values(busy: ScriptedServer, client: Client) -> None:
    cluster = client.get_cluster()
    assert (cluster.is_ready, cluster.nodes, cluster.jobs_running, cluster.jobs_waiting) == (True, 1, 1, 2)
    assert cluster.usable == Resources(cpus=4, gpus=0)
    (node,) = client.list_nodes()
    assert (node.name, node.held_by_jobs, node.held_by_warm_workers) == ("raptor", Resources(3, 0), Resources(1, 0))
    first, _, starting, idle = node.workers
    assert (first.pid, first.state, first.job_id, first.attempt, first.number) == (100, "WORKING", "job-1a", 1, 0)
    assert (first.owner, first.idle_since) == ("local", None)
    assert (starting.state, starting.pid) == (WorkerState.STARTING, 0)
    assert (idle.state, idle.job_id, idle.number, idle.owner) == ("WARM", "", None, None)
    assert idle.idle_since is not None
    assert idle.idle_since < datetime.now(UTC)
    assert (idle.memory_bytes, idle.data_bytes) == (412 * MEGABYTE, 55 * MEGABYTE)


def test_nodes_of_all_pages_are_listed(server: ScriptedServer, client: Client) -> None:
    server.on("ListNodes", nodes(a_node(node_id="a"), token="more"), nodes(a_node(node_id="b")))
    assert [node.node_id for node in client.list_nodes()] == ["a", "b"]
    assert server.requests["ListNodes"][1].page_token == "more"


def test_a_state_that_a_newer_server_has_is_unspecified(server: ScriptedServer, client: Client) -> None:
    server.on("ListNodes", nodes(a_node(pb.Worker(state=99))))  # type: ignore[arg-type]
    assert client.list_nodes()[0].workers[0].state is WorkerState.UNSPECIFIED


def test_nodes_shows_what_each_node_has_and_what_its_workers_do(busy: ScriptedServer, lockstep: Lockstep) -> None:
    code, out, err = lockstep("nodes")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "1 node, 1 job running, 2 waiting",
        "",
        "raptor",
        "  3 of 4 CPUs held by jobs, 1 warm",
        "  job-1a worker 0 (pid 100), 1 CPU",
        "  job-1a worker 1 (pid 101), 1 CPU",
        "  job-1a worker 2, starting, 1 CPU",
        "  warm (pid 7), 1 CPU, idle for 12 s, 392.9 MiB, data 52.5 MiB",
    ]


def test_nodes_shows_gpus_shares_and_what_others_hold(server: ScriptedServer, lockstep: Lockstep) -> None:
    with_gpu = {"resources": {"cpus": 0.5, "gpus": 1.0}}
    server.on("GetCluster", a_cluster(nodes=2, jobs_running=0))
    server.on(
        "ListNodes",
        nodes(
            a_node(
                warm(3, pid=0, memory_bytes=0, data_bytes=0, **with_gpu),
                node_id="1",
                name="two",
                total={"cpus": 4.0, "gpus": 2.0},
                usable={"cpus": 2.5, "gpus": 1.0},
                held_by_jobs={"cpus": 0.5},
                held_by_warm_workers={"cpus": 0.5, "gpus": 1.0},
            ),
            a_node(
                a_worker("WARMING_UP", idle_since={"seconds": 1}),
                node_id="2",
                name="one\x1b[2J",
                held_by_jobs={},
                held_by_warm_workers={"cpus": 1.0},
            ),
        ),
    )
    _, out, _ = lockstep("nodes")
    assert out.splitlines() == [
        "2 nodes, 0 jobs running, 0 waiting",
        "",
        "one\N{REPLACEMENT CHARACTER}[2J",
        "  0 of 4 CPUs held by jobs, 1 warming up",
        "  warming up, 1 CPU",
        "",
        "two",
        "  0.5 of 2.5 CPUs held by jobs, 0.5 warm, 1.5 more held by others; "
        "0 of 1 GPU held by jobs, 1 warm, 1 more held by others",
        "  warm, 0.5 CPUs, 1 GPU, idle for 3 s",
    ]


def a_gpu(index: int, **fields: Any) -> GpuTelemetry:
    given: dict[str, Any] = {
        "name": "NVIDIA H200",
        "uuid": f"GPU-{index}",
        "utilization_ratio": 0.99,
        "temperature_celsius": 64.0,
    }
    return GpuTelemetry(index=index, **(given | fields))


@pytest.fixture
def measured(server: ScriptedServer) -> ScriptedServer:
    """A server whose only node is measured."""
    host = HostTelemetry(
        cpus=4,
        cpu_utilization_ratio=0.374,
        memory_total_bytes=64_000 * MEGABYTE,
        memory_used_bytes=12_345 * MEGABYTE,
        disk_total_bytes=100,
        disk_used_bytes=89,
    )
    hopper = a_gpu(
        0,
        sm_active_ratio=0.868,
        memory_total_bytes=150_750 * MEGABYTE,
        memory_used_bytes=41_000 * MEGABYTE,
        power_watts=699.6,
        power_limit_watts=700.0,
        knows_throttle_reasons=True,
        throttle_reasons=["sw_power_cap", "hw_thermal_slowdown"],
        knows_xid_errors=True,
        xid_errors={31: 2, 13: 1},
        xid_error_ages_s={31: 4.5, 13: 600.0},
    )
    lost = GpuTelemetry(index=2, uuid="GPU-2", name="NVIDIA H200")
    telemetry = NodeTelemetry(receive_time={"seconds": 50}, host=host, gpus=[hopper, a_gpu(1), lost])
    worker = a_worker("WORKING", pid=100, job_id="job-1a", attempt=1, number=3, gpu_indexes=[0, 2])
    server.on("GetCluster", a_cluster())
    part = {"cpus": 1.0, "gpus": 0.25}
    sharing = a_worker("WORKING", pid=101, job_id="job-2b", attempt=1, number=0, gpu_indexes=[2], resources=part)
    server.on("ListNodes", nodes(a_node(worker, sharing, warm(1, gpu_indexes=[1]), telemetry=telemetry)))
    return server


def test_what_a_node_does_is_told_as_plain_values(measured: ScriptedServer, client: Client) -> None:
    (node,) = client.list_nodes()
    assert node.telemetry is not None
    assert node.telemetry.receive_time == datetime.fromtimestamp(50, UTC)
    assert (node.telemetry.host.cpus, node.telemetry.host.cpu_utilization_ratio) == (4, 0.374)
    assert node.telemetry.host.network_sent_bytes_total is None
    first, second, _ = node.telemetry.gpus
    assert (first.sm_active_ratio, first.tensor_active_ratio) == (0.868, None)
    assert first.throttle_reasons == ("sw_power_cap", "hw_thermal_slowdown")
    assert (first.xid_errors, first.xid_error_ages_s) == ({13: 1, 31: 2}, {13: 600.0, 31: 4.5})
    assert (second.throttle_reasons, second.xid_errors, second.xid_error_ages_s) == (None, None, None), (
        "it does not tell"
    )
    assert [worker.gpu_indexes for worker in node.workers] == [(0, 2), (2,), (1,)]


def test_a_node_has_room_for_as_many_shares_as_its_gpus_have() -> None:
    node = Node.from_proto(a_node(total={"cpus": 4.0, "gpus": 2.0}))
    rooms = [
        node.room_for(ResourcesSpec(cpus_per_worker=0.5, gpus_per_worker=1, gpu_share=share))
        for share in (1.0, 0.6, 0.25, 0.1)
    ]
    assert rooms == [2, 2, 8, 8], "the CPUs are the limit of the last"


def test_every_field_of_the_contract_is_told() -> None:
    for message, ours in ((HostTelemetry(), client_types.HostTelemetry), (GpuTelemetry(), client_types.GpuTelemetry)):
        names = {field.name for field in message.DESCRIPTOR.fields if not field.name.startswith("knows_")}
        assert names == {field.name for field in fields(ours)}


def test_nodes_shows_what_machines_and_gpus_do_and_who_uses_them(measured: ScriptedServer, lockstep: Lockstep) -> None:
    _, out, _ = lockstep("nodes")
    assert out.splitlines()[2:7] == [
        "raptor",
        "  3 of 4 CPUs held by jobs, 1 warm",
        "  CPU 37 %, memory 11.5 GiB of 59.6 GiB",
        "  GPU 0 NVIDIA H200: SM activity 87 %, memory 38.2 GiB of 140.4 GiB, 700 W of 700 W, 64 °C, "
        "throttled (sw power cap, hw thermal slowdown), error XID 13, error XID 31 (2 times), job-1a worker 3",
        "  GPU 1 NVIDIA H200: utilization 99 %, 64 °C",
    ]
    assert out.splitlines()[7] == (
        "  GPU 2 NVIDIA H200: does not answer, job-1a worker 3, job-2b worker 0 (25 % of it)"
    )


def test_nodes_says_that_a_disk_is_nearly_full(server: ScriptedServer, lockstep: Lockstep) -> None:
    host = HostTelemetry(cpus=1, disk_total_bytes=1000, disk_used_bytes=954)
    server.on("GetCluster", a_cluster())
    server.on("ListNodes", nodes(a_node(telemetry=NodeTelemetry(host=host))))
    assert "  disk 95 % full" in lockstep("nodes")[1].splitlines()


def test_nodes_as_json_has_the_telemetry(measured: ScriptedServer, lockstep: Lockstep) -> None:
    (node,) = json.loads(lockstep("nodes", "-o", "json")[1])["nodes"]
    assert node["telemetry"]["receive_time"] == "1970-01-01T00:00:50+00:00"
    assert node["telemetry"]["host"]["memory_used_bytes"] == 12_345 * MEGABYTE
    assert [gpu["power_watts"] for gpu in node["telemetry"]["gpus"]] == [699.6, None, None]
    assert node["telemetry"]["gpus"][0]["xid_errors"] == {"13": 1, "31": 2}


def test_nodes_says_that_there_is_no_launcher_yet(server: ScriptedServer, lockstep: Lockstep) -> None:
    why = "no launcher is in service yet; jobs wait until the cluster is up"
    server.on("GetCluster", pb.Cluster(not_ready_reason=why, jobs_waiting=1))
    server.on("ListNodes", nodes())
    assert lockstep("nodes") == (0, f"not ready: {why}\n0 nodes, 0 jobs running, 1 waiting\n", "")


def test_nodes_as_json_has_the_cluster_and_all_nodes(busy: ScriptedServer, lockstep: Lockstep) -> None:
    code, out, _ = lockstep("nodes", "-o", "json")
    data = json.loads(out)
    assert code == 0
    assert data["cluster"]["jobs_waiting"] == 2
    (node,) = data["nodes"]
    assert node["held_by_jobs"] == {"cpus": 3.0, "gpus": 0.0}
    assert [worker["state"] for worker in node["workers"]] == ["WORKING", "WORKING", "STARTING", "WARM"]
    assert node["workers"][0]["idle_since"] is None
    assert datetime.fromisoformat(node["workers"][3]["idle_since"]) < datetime.now(UTC)
