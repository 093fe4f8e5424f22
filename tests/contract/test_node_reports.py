"""What the agents of nodes tell, and what users see of it."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.server.cluster.nodes import FORGOTTEN_AFTER_S
from lockstep.v1.cluster_service_pb2 import ListNodesRequest, Node
from lockstep.v1.internal_service_pb2 import (
    ClusterCapacity,
    GpuUse,
    NodeCapacity,
    ReportNodeRequest,
    ReportNodeResponse,
    WorkerProcess,
    WorkerProcesses,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry, NodeTelemetry
from tests.support.server import Running, ScriptedLauncher, fetch, serving, status_of, violations_of

HOST = HostTelemetry(cpus=8, cpu_utilization_ratio=0.25, memory_total_bytes=100, memory_used_bytes=40)


def gpu(index: int, **fields: Any) -> GpuTelemetry:
    given: dict[str, Any] = {"index": index, "uuid": f"GPU-{index}abc-def", "name": "NVIDIA H200"}
    return GpuTelemetry(**(given | fields))


async def report(
    server: Running, *gpus: GpuTelemetry, node_id: str = "node-a", token: str | None = None, host: HostTelemetry = HOST
) -> ReportNodeResponse:
    request = ReportNodeRequest(node_id=node_id, telemetry=NodeTelemetry(host=host, gpus=gpus))
    metadata = (("lockstep-node-token", server.application.node_token if token is None else token),)
    response: ReportNodeResponse = await InternalServiceStub(server.channel).ReportNode(request, metadata=metadata)
    return response


async def nodes_of(server: Running) -> list[Node]:
    return list((await server.cluster.ListNodes(ListNodesRequest())).nodes)


async def ready(server: Running, *node_ids: str) -> ScriptedLauncher:
    """Have a launcher in service that has told of these nodes."""
    launcher = server.launcher()
    await launcher.be_ready(gpus=4)
    if node_ids:
        await launcher.offer(dict.fromkeys(node_ids, (4.0, 4.0)))
    await server.parts.dispatcher.cluster_is_ready.wait()
    return launcher


async def tell(server: Running, launcher: ScriptedLauncher, *processes: WorkerProcess) -> None:
    """Tell of processes, and wait until the server has heard of them."""
    await launcher.say(processes=WorkerProcesses(processes=processes))
    await launcher.say(capacity=ClusterCapacity(nodes=[NodeCapacity(node_id="node-a"), NodeCapacity(node_id="heard")]))
    while len(await nodes_of(server)) != 2:
        pass


def process(pid: int, gpu_ids: list[str], job_id: str = "", number: int = 0) -> WorkerProcess:
    """Make a process on node-a; an idle one when it has no job."""
    attempt = 2 if job_id else 0
    return WorkerProcess(node_id="node-a", pid=pid, gpu_ids=gpu_ids, job_id=job_id, attempt=attempt, number=number)


async def test_the_newest_sample_of_a_node_is_listed_with_it(server: Running) -> None:
    await ready(server, "node-a", "node-b")
    assert not any(node.HasField("telemetry") for node in await nodes_of(server))
    assert await report(server, gpu(0, power_watts=100)) == ReportNodeResponse()
    await report(server, gpu(0, power_watts=700, xid_errors={79: 1}, knows_xid_errors=True), gpu(1))
    first, second = await nodes_of(server)
    assert not second.HasField("telemetry")
    telemetry = first.telemetry
    assert telemetry.host == HOST
    assert [(gpu.index, gpu.power_watts) for gpu in telemetry.gpus] == [(0, 700), (1, 0)]
    assert dict(telemetry.gpus[0].xid_errors) == {79: 1}
    assert telemetry.receive_time.seconds > 1_700_000_000, "the server's clock counts"


async def test_prometheus_sees_when_an_xid_error_came_by_the_servers_clock(server: Running) -> None:
    await ready(server, "node-a")
    told = gpu(0, xid_errors={79: 3, 31: 1}, xid_error_ages_s={79: 600.0, 31: 0.5}, knows_xid_errors=True)
    began = time.time()
    await report(server, told, gpu(1, knows_xid_errors=True))
    ended = time.time()
    _, text = await fetch(server.application.http_address, "/metrics")
    found = re.findall(r'lockstep_gpu_xid_last_timestamp_seconds\{gpu="0",.*,xid="(\d+)"\} (\S+)', text)
    came = {int(xid): float(seconds) for xid, seconds in found}
    assert came.keys() == {79, 31}
    assert began - 600 <= came[79] <= ended - 600
    assert began - 0.5 <= came[31] <= ended - 0.5
    assert 'lockstep_gpu_xid_last_timestamp_seconds{gpu="1"' not in text, "it had none"


async def test_gpus_are_told_with_the_jobs_that_use_them(server: Running) -> None:
    launcher = await ready(server)
    await tell(
        server,
        launcher,
        process(1, ["0", "1"], "job-a", number=4),
        process(2, ["GPU-2abc"], "job-b"),
        process(3, ["1", "GPU-3abc-def"], "job-b", number=1),
        process(4, ["3"]),
        WorkerProcess(node_id="heard", gpu_ids=["0"], job_id="job-c"),
    )
    answer = await report(server, *(gpu(index) for index in range(4)))
    uses = [(0, "job-a"), (1, "job-a"), (1, "job-b"), (2, "job-b"), (3, "job-b")]
    assert list(answer.gpu_uses) == [GpuUse(index=index, job_id=job_id) for index, job_id in uses]
    told = server.parts.node_samples.gpu_uses("node-a")
    assert (told[0].uuid, told[0].attempt, told[0].number) == ("GPU-0abc-def", 2, 4)
    _, node = await nodes_of(server)
    held = {worker.pid: list(worker.gpu_indexes) for worker in node.workers}
    assert held == {1: [0, 1], 2: [2], 3: [1, 3], 4: [3]}


async def test_a_gpu_that_cannot_be_told_is_left_out(server: Running) -> None:
    launcher = await ready(server)
    await tell(server, launcher, process(1, ["7", "GPU-", "MIG-1", "²", ""], "job-a"))
    answer = await report(server, gpu(0), gpu(1))
    assert not answer.gpu_uses
    _, node = await nodes_of(server)
    assert list(node.workers[0].gpu_indexes) == [7], "a number needs no sample"


async def test_a_sample_is_forgotten_when_no_other_comes_or_the_node_is_gone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = server.parts.node_samples
    time_s = 100.0
    monkeypatch.setattr(telemetry, "_now", lambda: time_s)
    launcher = await ready(server, "node-a", "node-b")
    for node_id in ("node-a", "node-b", "node-c"):
        await report(server, node_id=node_id)
    assert set(telemetry.all()) == {"node-a", "node-b"}, "the third is none of the cluster's"
    time_s += FORGOTTEN_AFTER_S - 1
    await report(server, node_id="node-b")
    assert telemetry.newest("node-a") is not None
    time_s += 1
    assert [node.HasField("telemetry") for node in await nodes_of(server)] == [False, True]
    assert (telemetry.newest("node-a"), set(telemetry.all())) == (None, {"node-b"})
    await launcher.offer({"node-a": (4.0, 0.0)})
    while len(await nodes_of(server)) != 1:
        pass
    assert (telemetry.newest("node-b"), telemetry.all(), telemetry.gpu_uses("node-b")) == (None, {}, [])
    for number in range(100):
        await report(server, node_id=f"gone-{number}")
    assert len(telemetry._samples) <= 1


async def test_samples_go_on_while_the_launcher_is_away(server: Running) -> None:
    launcher = await ready(server)
    await launcher.leave()
    assert await launcher.call.read() is grpc.aio.EOF
    await report(server)
    (node,) = await nodes_of(server)
    assert node.telemetry.host == HOST


async def test_samples_of_others_are_refused(server: Running) -> None:
    await ready(server)
    for token in ("", "wrong", server.application.launcher_token):
        error = await status_of(report(server, token=token))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert server.parts.node_samples.all() == {}


async def test_the_token_outlives_the_server_as_jobs_do_and_is_no_attempts(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        async with serving(tmp_path) as server:
            tokens.append(server.application.node_token)
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 64


@pytest.mark.parametrize(
    ("telemetry", "field"),
    [
        (NodeTelemetry(host=HostTelemetry(cpu_utilization_ratio=math.nan)), "telemetry.host.cpu_utilization_ratio"),
        (NodeTelemetry(host=HostTelemetry(cpu_utilization_ratio=1.01)), "telemetry.host.cpu_utilization_ratio"),
        (NodeTelemetry(host=HostTelemetry(memory_used_bytes=-1)), "telemetry.host.memory_used_bytes"),
        (NodeTelemetry(gpus=[gpu(0), gpu(1, power_watts=math.inf)]), "telemetry.gpus[1].power_watts"),
        (NodeTelemetry(gpus=[gpu(0, sm_active_ratio=-0.1)]), "telemetry.gpus[0].sm_active_ratio"),
        (NodeTelemetry(gpus=[gpu(0, temperature_celsius=math.nan)]), "telemetry.gpus[0].temperature_celsius"),
        (NodeTelemetry(gpus=[gpu(-1)]), "telemetry.gpus[0].index"),
        (NodeTelemetry(gpus=[gpu(0), gpu(0, uuid="GPU-other")]), "telemetry.gpus"),
        (NodeTelemetry(gpus=[gpu(0, uuid="same"), gpu(1, uuid="same")]), "telemetry.gpus"),
        (NodeTelemetry(gpus=[gpu(0, uuid="")]), "telemetry.gpus[0].uuid"),
        (NodeTelemetry(gpus=[gpu(0, name="x" * 129)]), "telemetry.gpus[0].name"),
        (NodeTelemetry(gpus=[gpu(0, name="a\nb")]), "telemetry.gpus[0].name"),
        (NodeTelemetry(gpus=[gpu(0, throttle_reasons=["Too Hot"])]), "telemetry.gpus[0].throttle_reasons"),
        (NodeTelemetry(gpus=[gpu(0, throttle_reasons=["a"] * 33)]), "telemetry.gpus[0].throttle_reasons"),
        (NodeTelemetry(gpus=[gpu(0, xid_errors={-1: 1})]), "telemetry.gpus[0].xid_errors"),
        (NodeTelemetry(gpus=[gpu(0, xid_errors=dict.fromkeys(range(1001), 1))]), "telemetry.gpus[0].xid_errors"),
        (NodeTelemetry(gpus=[gpu(0, xid_error_ages_s={79: 1})]), "telemetry.gpus[0].xid_error_ages_s"),
        (
            NodeTelemetry(gpus=[gpu(0, xid_errors={79: 1}, xid_error_ages_s={79: -1})]),
            "telemetry.gpus[0].xid_error_ages_s[79]",
        ),
        (
            NodeTelemetry(gpus=[gpu(0, xid_errors={79: 1}, xid_error_ages_s={79: math.inf})]),
            "telemetry.gpus[0].xid_error_ages_s[79]",
        ),
        (NodeTelemetry(gpus=[gpu(index) for index in range(257)]), "telemetry.gpus"),
    ],
)
async def test_a_sample_that_cannot_be_is_refused_and_the_one_before_stays(
    server: Running, telemetry: NodeTelemetry, field: str
) -> None:
    await ready(server)
    await report(server)
    error = await status_of(report(server, *telemetry.gpus, host=telemetry.host))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations_of(error)) == [field]
    (node,) = await nodes_of(server)
    assert node.telemetry.host == HOST


async def test_a_sample_must_say_of_which_node_it_is_and_a_gpu_may_be_cold(server: Running) -> None:
    await ready(server)
    assert "node_id" in violations_of(await status_of(report(server, node_id="")))
    await report(server, gpu(0, temperature_celsius=-5, utilization_ratio=1.0))
