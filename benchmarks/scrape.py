"""What a scrape of /metrics costs on a large cluster: a server with 1,000 GPUs on 125 nodes, and 200 jobs of 5 workers.

    python benchmarks/scrape.py [--jobs 200] [--rounds 20]

The server is a real one in a process of its own; launcher, workers and agents are played over its own calls, with every
figure that a GPU can tell. Peer, in turns with it: a page with the same families and series made of the plain metric
objects of prometheus_client, whose labels were set beforehand: what it takes to write that many lines.
"""

import argparse
import statistics
import sys
import threading
import time
import urllib.request
from queue import SimpleQueue
from typing import Any

import grpc
import psutil
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from lockstep.v1 import internal_service_pb2 as messages
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.cluster_service_pb2_grpc import ClusterServiceStub
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JobProgress
from lockstep.v1.job_service_pb2 import SubmitJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.ledger_pb2 import PhaseSeconds
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, MetricPoint
from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry, NodeTelemetry
from played_cluster import played_server

WORKERS = 5
GPUS_PER_NODE = 8
ALLOWED_S = 1.0
ALLOWED_BYTES = 150 << 20
STEP_COUNTS = [0, 0, 0, 0, 10, 100, 200, 20, 1, 0, 0, 0, 0, 0, 0, 0]


class Cluster:
    """Launcher, workers and agents of the server, as far as a scrape sees them."""

    def __init__(self, server: dict[str, Any], jobs: int) -> None:
        self._server = server
        self._channel = grpc.insecure_channel(server["grpc"])
        self._stub = InternalServiceStub(self._channel)
        self._jobs = jobs
        self._facts: SimpleQueue[Any] = SimpleQueue()
        nodes = -(-jobs * WORKERS // GPUS_PER_NODE)
        self.nodes = [f"{number:056x}" for number in range(nodes)]
        self.gangs: list[messages.StartGang] = []

    def start(self) -> None:
        """Bring all jobs to where they train."""
        say = self._facts.put
        metadata = (("lockstep-launcher-token", self._server["launcher_token"]),)
        orders = self._stub.ConnectLauncher(iter(self._facts.get, None), metadata=metadata)
        say(messages.ConnectLauncherRequest(ready=messages.LauncherReady(epoch=self._server["epoch"])))
        capacity = messages.ClusterCapacity()
        for number, node_id in enumerate(self.nodes):
            capacity.nodes.add(
                node_id=node_id, node_name=f"node-{number}", cpus=96, gpus=GPUS_PER_NODE, total_cpus=96,
                total_gpus=GPUS_PER_NODE,
            )  # fmt: skip
        say(messages.ConnectLauncherRequest(capacity=capacity))
        cluster = ClusterServiceStub(self._channel)
        while not cluster.GetCluster(GetClusterRequest()).is_ready:
            time.sleep(0.05)
        spec = JobSpec(
            model={"mlp": {}},
            data={"builtin": {"name": "digits"}},
            optimizer={"sgd": {"learning_rate": 0.1}},
            resources={"workers": WORKERS, "gpus_per_worker": 1},
        )
        submit = JobServiceStub(self._channel).SubmitJob
        for number in range(self._jobs):
            spec.name = f"job-{number}"
            submit(SubmitJobRequest(spec=spec))
        processes = messages.WorkerProcesses()
        used = dict.fromkeys(self.nodes, 0)
        for order in orders:
            gang = order.start_gang
            self.gangs.append(gang)
            for number, node_id in enumerate(gang.node_ids):
                processes.processes.add(
                    node_id=node_id, pid=1000 + number, cpus=1, gpus=1, is_warm=True, job_id=gang.job_id,
                    attempt=gang.attempt, number=number, gpu_ids=[str(used[node_id])],
                )  # fmt: skip
                used[node_id] += 1
            say(
                messages.ConnectLauncherRequest(
                    gang_started=messages.GangStarted(job_id=gang.job_id, attempt=gang.attempt)
                )
            )
            if len(self.gangs) == self._jobs:
                break
        say(messages.ConnectLauncherRequest(processes=processes))
        for gang in self.gangs:
            self._report(gang)

    def _report(self, gang: messages.StartGang) -> None:
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "grad_norm", "learning_rate")
        metadata = (("lockstep-attempt-token", gang.attempt_token),)
        report = messages.ReportProgressRequest(
            job_id=gang.job_id,
            attempt=gang.attempt,
            generation=1,
            sequence=1,
            progress=JobProgress(step=100, total_steps=1000, epoch=1.5),
            points=[MetricPoint(name=name, step=100, value=0.123456789, kind=METRIC_KIND_RESULT) for name in names],
            hardware_class="benchmark",
        )
        self._stub.ReportProgress(report, metadata=metadata)

    def tell(self, sequence: int) -> None:
        """What workers and agents tell every few seconds."""
        for gang in self.gangs:
            metadata = (("lockstep-attempt-token", gang.attempt_token),)
            for rank, node_id in enumerate(gang.node_ids):
                seconds = {field.name: 12.3456789 * sequence for field in PhaseSeconds.DESCRIPTOR.fields}
                request = messages.ReportLedgerRequest(
                    job_id=gang.job_id, attempt=gang.attempt, number=rank, rank=rank, node_id=node_id,
                    sequence=sequence, seconds=PhaseSeconds(**seconds), steps=331 * sequence, examples=84736 * sequence,
                    step_duration_counts=[count * sequence for count in STEP_COUNTS],
                    step_duration_sum_s=21.0 * sequence, flops_per_step=1.5e9, cpu_seconds=30.0 * sequence,
                    memory_bytes=1 << 30, gpu_memory_bytes=1 << 34,
                )  # fmt: skip
                self._stub.ReportLedger(request, metadata=metadata)
        for number, node_id in enumerate(self.nodes):
            sample = NodeTelemetry(host=full(HostTelemetry()))
            for index in range(GPUS_PER_NODE):
                gpu = full(GpuTelemetry(index=index, uuid=f"GPU-{number:04}-{index}", name="NVIDIA H200"))
                gpu.index = index
                gpu.knows_throttle_reasons = gpu.knows_xid_errors = True
                sample.gpus.append(gpu)
            self._stub.ReportNode(
                messages.ReportNodeRequest(node_id=node_id, telemetry=sample),
                metadata=(("lockstep-node-token", self._server["node_token"]),),
            )

    def close(self) -> None:
        self._facts.put(None)
        self._channel.close()


def full(message: Any) -> Any:
    """The message with every number set."""
    for field in message.DESCRIPTOR.fields:
        if not field.is_repeated and field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_INT64, field.CPPTYPE_INT32):
            setattr(message, field.name, 0.87654321 if field.cpp_type == field.CPPTYPE_DOUBLE else 123456789)
    return message


def fetch(address: str) -> tuple[str, float]:
    """The page, and how long it took."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as response:
        page = response.read().decode()
    return page, time.perf_counter() - began


def peer_of(page: str) -> tuple[Any, str]:
    """A server of a page with the same samples made of plain gauges, and its address."""
    registry = CollectorRegistry()
    made: dict[str, Gauge] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name not in made:
                made[sample.name] = Gauge(
                    sample.name.replace(":", "_"), family.documentation, sorted(sample.labels), registry=registry
                )
            gauge = made[sample.name]
            (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return server, f"127.0.0.1:{server.server_port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with played_server() as server:
        return measure(server.facts, server.process, options)


def measure(server: dict[str, Any], process: psutil.Process, options: argparse.Namespace) -> int:
    empty = process.memory_info().rss
    cluster = Cluster(server, options.jobs)
    cluster.start()
    cluster.tell(1)
    page, _ = fetch(server["http"])
    peer, peer_address = peer_of(page)
    most = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], process.memory_info().rss)

    threading.Thread(target=watch, daemon=True).start()
    times: dict[str, list[float]] = {"lockstep": [], "prometheus_client": []}
    for number in range(options.rounds):
        cluster.tell(2 + number)  # else the samples would be too old to be told
        time.sleep(1.0)  # a page that is dear is kept for so long
        times["lockstep"].append(fetch(server["http"])[1])
        times["prometheus_client"].append(fetch(peer_address)[1])
    ended.set()
    peer.shutdown()
    cluster.close()
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    gpus = sum(line.startswith("lockstep_gpu_info") for line in lines)
    jobs = sum(line.startswith("lockstep_job_info") for line in lines)
    print(f"{gpus:,} GPUs, {jobs} jobs: {len(lines):,} series, {len(page) / 2**20:.1f} MiB a page")
    for name, values in times.items():
        print(f"{name:20} p50 {statistics.median(values):6.3f} s, worst {max(values):6.3f} s")
    ratio = statistics.median(a / b for a, b in zip(times["lockstep"], times["prometheus_client"], strict=True))
    print(f"lockstep takes {ratio:.2f}x the time of prometheus_client's own objects")
    print(f"memory of the server: {most[0] / 2**20:.0f} MiB at most, {empty / 2**20:.0f} MiB of it before any job")
    is_well = statistics.median(times["lockstep"]) < ALLOWED_S and most[0] < ALLOWED_BYTES
    print("within" if is_well else "NOT within", f"{ALLOWED_S:.0f} s and {ALLOWED_BYTES >> 20} MiB")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
