"""What Prometheus is told of nodes and GPUs. A node that is lost, or says nothing for a while, has no series."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import Metric

from lockstep.contract.spec.resources import UNITS, gpus_of
from lockstep.server.cluster.view import worker_state
from lockstep.server.telemetry.families import Row, counter, gauge
from lockstep.server.telemetry.gpu_peaks import peaks_of
from lockstep.server.telemetry.snapshot import Snapshot
from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry

_GPU = ["node", "gpu", "uuid"]
_STATES = ("starting", "working", "warming_up", "warm")


# Figures of a sample that may be unset: field, and what it tells. The metric is named after the field.
_HOST_GAUGES = {
    "cpu_utilization_ratio": "Share of the time of the CPUs in which they were busy, 0 to 1.",
    "memory_total_bytes": "Memory of the node.",
    "memory_used_bytes": "Memory that is not available to new processes.",
    "disk_total_bytes": "Size of the file system that holds Ray's temporary folder and the logs.",
    "disk_used_bytes": "What is used of that file system.",
}
_HOST_COUNTERS = {
    "disk_read_bytes_total": "Bytes read from all disks.",
    "disk_written_bytes_total": "Bytes written to all disks.",
    "network_received_bytes_total": "Bytes received over the network, without loopback.",
    "network_sent_bytes_total": "Bytes sent over the network, without loopback.",
}
_GPU_GAUGES = {
    "utilization_ratio": "Share of the time in which some kernel ran, 0 to 1; not how much of the GPU it used.",
    "memory_utilization_ratio": "Share of the time in which memory was read or written, 0 to 1.",
    "memory_total_bytes": "Memory of the GPU.",
    "memory_used_bytes": "Memory in use.",
    "power_watts": "Power that the GPU draws, in watts.",
    "power_limit_watts": "Most power that it is allowed, in watts.",
    "temperature_celsius": "Temperature of the chip, in degrees Celsius.",
    "sm_clock_hertz": "Clock of the streaming multiprocessors, in hertz.",
    "sm_clock_max_hertz": "Most that this clock can be, in hertz.",
    "memory_clock_hertz": "Clock of the memory, in hertz.",
    "sm_active_ratio": "Share of the time in which the multiprocessors had work, 0 to 1; from Hopper on.",
    "sm_occupancy_ratio": "Share of the possible warps that were resident, 0 to 1; from Hopper on.",
    "tensor_active_ratio": "Share of the time in which tensor cores were busy, 0 to 1; from Hopper on.",
    "memory_bandwidth_ratio": "Share of the bandwidth of the memory that was used, 0 to 1; from Hopper on.",
}
_GPU_COUNTERS = {"energy_joules_total": "Energy since the driver was loaded, in joules."}


class IdleGpus:
    """Adds up the time of GPUs that no job holds, from scrape to scrape."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # two may scrape at once
        self._seconds = 0.0
        self._last: tuple[float, float] | None = None

    def seconds(self, now: float, idle: float) -> float:
        """GPU seconds up to now, when so many are idle."""
        with self._lock:
            if self._last is not None:
                before, idle_before = self._last
                self._seconds += max(0.0, now - before) * (idle + idle_before) / 2
            self._last = now, idle
            return self._seconds


def collect_nodes(snapshot: Snapshot, idle_gpus: IdleGpus) -> Iterator[Metric]:
    """Yield what is told of the cluster, its nodes and its GPUs."""
    names = snapshot.node_names
    yield gauge("lockstep_launcher_up", "1 while a launcher is in service.", [], [([], float(snapshot.has_launcher))])
    yield gauge("lockstep_watchers", "Streams of jobs, metrics and logs that are open.", [], [([], snapshot.watchers)])
    yield gauge(
        "lockstep_cluster_ready",
        "1 while jobs can start.",
        [],
        [([], float(not snapshot.cluster.why_not_ready))],
    )
    yield gauge(
        "lockstep_node_info",
        "Always 1; its labels tell Ray's id of the node.",
        ["node", "node_id"],
        (([name, node_id], 1) for node_id, name in names.items()),
    )
    yield gauge(
        "lockstep_node_resources",
        "CPUs and GPUs of a node: total; usable, without what others hold; allocated to jobs; held by warm workers.",
        ["node", "resource", "state"],
        _resources(snapshot, names),
    )
    yield gauge(
        "lockstep_node_workers",
        "Worker processes by what they do: starting, working, warming_up or warm.",
        ["node", "state"],
        _workers(snapshot, names),
    )
    yield from _hosts(snapshot, names)
    gpus = [
        ([names[node_id], str(gpu.index), gpu.uuid], gpu)
        for node_id, sample in snapshot.node_telemetry.items()
        if node_id in names
        for gpu in sample.gpus
    ]
    if gpus:
        yield from _gpus(gpus)
        yield _xid_times(snapshot, names)
        yield from _allocation(snapshot, names)
    if gpus or any(view.node.total.gpu for view in snapshot.cluster.nodes):
        yield _gpu_seconds(snapshot, idle_gpus)


def _resources(snapshot: Snapshot, names: dict[str, str]) -> Iterator[Row]:
    for view in snapshot.cluster.nodes:
        name = names[view.node.node_id]
        amounts = (
            ("total", view.node.total),
            ("usable", view.node.usable),
            ("allocated", view.held_by_jobs),
            ("warm", view.held_by_warm),
        )
        for state, amount in amounts:
            yield [name, "cpu", state], amount.cpu / UNITS
            yield [name, "gpu", state], amount.gpu / UNITS


def _workers(snapshot: Snapshot, names: dict[str, str]) -> Iterator[Row]:
    for view in snapshot.cluster.nodes:
        states = [worker_state(process) for process in view.workers]
        for state in _STATES:
            yield [names[view.node.node_id], state], states.count(state)


def _hosts(snapshot: Snapshot, names: dict[str, str]) -> Iterator[Metric]:
    samples = [(names[node_id], sample) for node_id, sample in snapshot.node_telemetry.items() if node_id in names]
    yield gauge(
        "lockstep_node_telemetry_age_seconds",
        "Age of the newest sample of the node.",
        ["node"],
        (
            ([name], max(0.0, snapshot.time.timestamp() - sample.receive_time.ToMicroseconds() / 1e6))
            for name, sample in samples
        ),
    )
    hosts = [([name], sample.host) for name, sample in samples]
    yield from _figures("lockstep_node", ["node"], hosts, _HOST_GAUGES, _HOST_COUNTERS)


def _gpus(gpus: list[tuple[list[str], GpuTelemetry]]) -> Iterator[Metric]:
    yield gauge(
        "lockstep_gpu_info",
        "Always 1; its labels tell the product.",
        [*_GPU, "name"],
        (([*labels, gpu.name], 1) for labels, gpu in gpus),
    )
    yield from _figures("lockstep_gpu", _GPU, gpus, _GPU_GAUGES, _GPU_COUNTERS)
    yield gauge(
        "lockstep_gpu_peak_flops",
        "Most operations per second in each precision of jobs, where the product is known.",
        [*_GPU, "precision"],
        (([*labels, precision], peak) for labels, gpu in gpus for precision, peak in peaks_of(gpu.name).items()),
    )
    yield gauge(
        "lockstep_gpu_throttled",
        "1 for each reason why the clocks are lower than they could be; a 0 without reason while they are not.",
        [*_GPU, "reason"],
        (
            ([*labels, reason], float(bool(reason)))
            for labels, gpu in gpus
            if gpu.knows_throttle_reasons
            for reason in (gpu.throttle_reasons or [""])
        ),
    )
    yield counter(
        "lockstep_gpu_xid_errors",
        "Critical errors of the driver, by XID code; a 0 without code while there was none.",
        [*_GPU, "xid"],
        (
            ([*labels, xid], count)
            for labels, gpu in gpus
            if gpu.knows_xid_errors
            for xid, count in ([(str(code), count) for code, count in gpu.xid_errors.items()] or [("", 0)])
        ),
    )


def _xid_times(snapshot: Snapshot, names: dict[str, str]) -> Metric:
    return gauge(
        "lockstep_gpu_xid_last_timestamp_seconds",
        "When the newest critical error of the driver came, by XID code, in seconds since 1970 by the server's clock.",
        [*_GPU, "xid"],
        (
            ([names[node_id], str(gpu.index), gpu.uuid, str(code)], sample.receive_time.ToMicroseconds() / 1e6 - age)
            for node_id, sample in snapshot.node_telemetry.items()
            if node_id in names
            for gpu in sample.gpus
            for code, age in gpu.xid_error_ages_s.items()
        ),
    )


def _figures(
    front: str,
    names: list[str],
    samples: Sequence[tuple[list[str], HostTelemetry | GpuTelemetry]],
    gauges: Mapping[str, str],
    counters: Mapping[str, str],
) -> Iterator[Metric]:
    """A family for each figure, with the samples that have it."""
    for make, texts in ((gauge, gauges), (counter, counters)):
        for field, text in texts.items():
            rows = ((labels, getattr(sample, field)) for labels, sample in samples if sample.HasField(field))
            yield make(f"{front}_{field.removesuffix('_total')}", text, names, rows)


def _allocation(snapshot: Snapshot, names: dict[str, str]) -> Iterator[Metric]:
    ranks = {
        (view.job.job_id, account.attempt, account.number): str(rank)
        for view in snapshot.jobs
        for rank, account in view.ledger.ranks.items()
    }
    shares: Counter[tuple[str, ...]] = Counter()  # of workers whose ranks are not known all that share a GPU
    for node_id, uses in snapshot.gpu_uses.items():
        for use in uses if node_id in names else ():
            rank = ranks.get((use.job_id, use.attempt, use.number), "")
            shares[names[node_id], str(use.index), use.uuid, use.job_id, rank] += use.share
    labels = [*_GPU, "job_id", "rank"]
    yield gauge(
        "lockstep_gpu_allocation_info",
        "Always 1; its labels tell which job and rank a GPU works for. The rank is empty while it is not known.",
        labels,
        ((key, 1) for key in shares),
    )
    yield gauge(
        "lockstep_gpu_allocation_ratio",
        "Share of the GPU that the rank of the job holds, 0 to 1.",
        labels,
        ((key, share / UNITS) for key, share in shares.items()),
    )


def _gpu_seconds(snapshot: Snapshot, idle_gpus: IdleGpus) -> Metric:
    nodes = snapshot.cluster.nodes
    idle = sum(max(0, view.node.usable.gpu - view.held_by_jobs.gpu) for view in nodes) / UNITS
    rows: list[Row] = [(["", "idle"], idle_gpus.seconds(snapshot.time.timestamp(), idle))]
    for view in snapshot.jobs:
        gpus = gpus_of(view.job.spec.resources)
        if gpus and view.ledger.ranks:  # without ranks nothing is known of it, and 0 would set the counter back
            rows += [([view.job.job_id, cause], gpus * s) for cause, s in view.ledger.by_cause().items()]
    return counter(
        "lockstep_gpu_seconds",
        "Time of GPUs by the job that held them, and by what it was spent for: productive, start_up, checkpoint, "
        "healing or idle. Without a job: time of GPUs that no job held, summed up from scrape to scrape.",
        ["job_id", "cause"],
        rows,
    )
