"""A page with the series of a cluster with GPUs, on which a job is slow and much is wrong; nothing stands behind it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import nan

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tests.support.boards import metrics

JOB = "job-aaaaaa"
WAITING = "job-bbbbbb"
NODES = ("gpu-1", "gpu-2")
STATES = ["queued", "starting", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
PHASES = {"data": 0.2, "host_to_device": 0.02, "forward": 0.2, "backward": 0.3, "exchange": 0.03, "optimizer": 0.05}
CAUSES = {"productive": 0.8, "start_up": 0.05, "checkpoint": 0.1, "healing": 0.02, "idle": 0.03}
WAITS = {"0": 0.2, "1": 0.0, "2": 0.2}
"""By rank; rank 1 is the straggler, and rank 2 holds a GPU that is idle."""
Row = tuple[dict[str, str], float]


def _gpus() -> Iterator[tuple[dict[str, str], str | None]]:
    """The labels of each GPU, and the rank that holds it."""
    for number, rank in enumerate(("0", "1", "2", None)):
        yield {"node": NODES[number // 2], "gpu": str(number % 2), "uuid": f"GPU-{number}"}, rank


class GpuCluster(Collector):
    """Writes the page; counters grow with the time."""

    def __init__(self) -> None:
        self._start = time.time()

    def collect(self) -> Iterable[Metric]:
        age = time.time() - self._start
        listed = metrics()
        for name, rows in self._rows(age).items():
            metric = listed[name]
            labels = sorted(metric.labels)
            if metric.type == "histogram":
                histogram = HistogramMetricFamily(name, "Made up.", labels=labels)
                for values, count in rows:
                    buckets = [("0.1", count / 2), ("1", count), ("+Inf", count)]
                    histogram.add_metric([values[label] for label in labels], buckets, sum_value=count * 0.3)
                yield histogram
                continue
            family = (CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily)(
                name, "Made up.", labels=labels
            )
            for values, value in rows:
                family.add_metric([values[label] for label in labels], value)
            yield family

    def _rows(self, age: float) -> dict[str, list[Row]]:
        return self._service(age) | self._jobs(age) | self._ranks(age) | self._nodes(age) | self._gpus(age)

    def _service(self, age: float) -> dict[str, list[Row]]:
        call = {"grpc_service": "lockstep.v1.JobService", "grpc_method": "GetJob"}
        ended: list[Row] = [({"state": "succeeded", "reason": ""}, 4)]
        if age > 3:
            ended.append(({"state": "failed", "reason": "NON_FINITE_LOSS"}, 1))
        return {
            "lockstep_build_info": [({"version": "0.1.0", "engine_version": "1"}, 1)],
            "lockstep_launcher_up": [({}, 1)],
            "lockstep_cluster_ready": [({}, 1)],
            "lockstep_jobs": [({"state": state}, float(state in ("running", "queued"))) for state in STATES],
            "lockstep_queue_depth": [({}, 1)],
            "lockstep_queue_oldest_wait_seconds": [({}, 700 + age)],
            "lockstep_jobs_submitted_total": [({}, 6)],
            "lockstep_jobs_finished_total": ended,
            "lockstep_queue_wait_seconds": [({}, age)],
            "lockstep_startup_seconds": [({}, age)],
            "grpc_server_started_total": [(call, 10 * age)],
            "grpc_server_handled_total": [
                (call | {"grpc_code": "OK"}, 9 * age),
                (call | {"grpc_code": "INTERNAL"}, age),
            ],
            "grpc_server_handling_seconds": [(call, 10 * age)],
            "lockstep_store_commit_seconds": [({}, 5 * age)],
            "lockstep_store_commit_changes": [({}, 5 * age)],
            "lockstep_event_loop_lag_seconds": [({}, age)],
            "lockstep_watchers": [({}, 3)],
            "lockstep_points_stored_total": [({}, 20 * age)],
            "lockstep_points_repeated_total": [({}, age)],
            "python_info": [(dict.fromkeys(("implementation", "major", "minor", "patchlevel", "version"), "3"), 1)],
            "process_cpu_seconds_total": [({}, 0.3 * age)],
            "process_resident_memory_bytes": [({}, 2e8)],
            "process_virtual_memory_bytes": [({}, 2e9)],
            "process_start_time_seconds": [({}, self._start)],
            "process_open_fds": [({}, 40)],
            "process_max_fds": [({}, 1024)],
        }

    def _jobs(self, age: float) -> dict[str, list[Row]]:
        job = {"job_id": JOB}
        about = {"model": "resnet", "data": "cifar10", "owner": "ann", "device": "gpu", "precision": "bf16"}
        step = 100 + 10 * age
        gauges = {
            "progress_ratio": step / 1e5,
            "step": step,
            "total_steps": 1e5,
            "epoch": step / 1e3,
            "flops_per_step": 2e12,
            "create_timestamp_seconds": self._start - 60,
            "start_timestamp_seconds": self._start - 30,
            "last_step_timestamp_seconds": time.time() - 1,
            "checkpoint_timestamp_seconds": self._start,
            "checkpoint_step": 90,
            "checkpoint_interval_steps": 100,
        }
        return {f"lockstep_job_{name}": [(job, value)] for name, value in gauges.items()} | {
            "lockstep_job_info": [
                (job | {"name": "resnet"} | about, 1),
                ({"job_id": WAITING, "name": "large"} | about, 1),
            ],
            "lockstep_job_state": [
                ({"job_id": job_id, "state": state}, float(state == its_state))
                for job_id, its_state in ((JOB, "running"), (WAITING, "queued"))
                for state in STATES
            ],
            "lockstep_job_end_timestamp_seconds": [
                ({"job_id": "job-cccccc", "state": "succeeded", "reason": ""}, self._start - 60),
                ({"job_id": "job-dddddd", "state": "failed", "reason": "NON_FINITE_LOSS"}, self._start),
            ],
            "lockstep_job_workers": [(job | {"state": state}, 3) for state in ("wanted", "held", "running")],
            "lockstep_job_heals_total": [(job, age // 5)],
            "lockstep_job_restarts_total": [(job, age // 5)],
            "lockstep_job_metric": [
                (job | {"name": "train_loss"}, nan if age > 5 else 2.3),
                (job | {"name": "val_loss"}, 2.4),
                (job | {"name": "val_accuracy"}, 0.1),
                (job | {"name": "grad_norm"}, 3.0),
            ],
            "lockstep_steps_total": [(job, step)],
            "lockstep_samples_total": [(job, step * 128)],
            "lockstep_step_duration_seconds": [(job, step)],
            "lockstep_worker_seconds_total": [
                (job | {"cause": cause}, 3 * age * share) for cause, share in CAUSES.items()
            ],
        }

    def _ranks(self, age: float) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for gpu, number in _gpus():
            if number is None:
                continue
            rank = {"job_id": JOB, "rank": number}
            phases = PHASES | {"exchange_wait": WAITS[number]}
            figures: dict[str, Row] = {
                "info": (rank | {"node": gpu["node"], "device": f"gpu {gpu['gpu']}"}, 1),
                "cpus": (rank, 4),
                "cpu_seconds_total": (rank, 2 * age),
                "memory_bytes": (rank, 3e9),
                "gpu_memory_bytes": (rank, 2e10),
            }
            for name, row in figures.items():
                rows.setdefault(f"lockstep_worker_{name}", []).append(row)
            for phase, share in phases.items():
                rows.setdefault("lockstep_phase_seconds_total", []).append((rank | {"phase": phase}, share * age))
        return rows

    def _nodes(self, age: float) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for node in NODES:
            labels = {"node": node}
            figures = {
                "cpu_utilization_ratio": 0.3,
                "memory_total_bytes": 1e12,
                "memory_used_bytes": 3e11,
                "disk_total_bytes": 1e12,
                "disk_used_bytes": 9.7e11,
                "disk_read_bytes_total": 1e6 * age,
                "disk_written_bytes_total": 1e6 * age,
                "network_received_bytes_total": 1e8 * age,
                "network_sent_bytes_total": 1e8 * age,
            }
            if node == "gpu-1":  # the agent of the other one is silent
                figures["telemetry_age_seconds"] = 1.0
            for name, value in figures.items():
                rows.setdefault(f"lockstep_node_{name}", []).append((labels, value))
            rows.setdefault("lockstep_node_info", []).append((labels | {"node_id": f"{node}-id"}, 1))
            for resource, total in (("cpu", 64), ("gpu", 2)):
                held = {"total": total, "usable": total, "allocated": 2 if node == "gpu-1" else 1, "warm": 0}
                for state, count in held.items():
                    row = (labels | {"resource": resource, "state": state}, float(count))
                    rows.setdefault("lockstep_node_resources", []).append(row)
            for state in ("starting", "working", "warming_up", "warm"):
                rows.setdefault("lockstep_node_workers", []).append((labels | {"state": state}, 1))
        return rows

    def _gpus(self, age: float) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for gpu, rank in _gpus():
            busy = {"0": 0.95, "1": 0.9, "2": 0.01, None: 0.0}[rank]
            figures = {
                "utilization_ratio": busy,
                "memory_utilization_ratio": busy / 2,
                "memory_total_bytes": 1.4e11,
                "memory_used_bytes": 2e10,
                "power_watts": 100 + 500 * busy,
                "power_limit_watts": 700.0,
                "energy_joules_total": (100 + 500 * busy) * age,
                "temperature_celsius": 40 + 40 * busy,
                "sm_clock_hertz": 1.9e9,
                "sm_clock_max_hertz": 1.98e9,
                "memory_clock_hertz": 2.6e9,
                "sm_active_ratio": busy * 0.6,
                "sm_occupancy_ratio": busy * 0.3,
                "tensor_active_ratio": busy * 0.1,
                "memory_bandwidth_ratio": busy * 0.4,
            }
            for name, value in figures.items():
                rows.setdefault(f"lockstep_gpu_{name}", []).append((gpu, value))
            for precision, peak in {"fp32": 6.7e13, "bf16": 9.89e14}.items():
                rows.setdefault("lockstep_gpu_peak_flops", []).append((gpu | {"precision": precision}, peak))
            rows.setdefault("lockstep_gpu_info", []).append((gpu | {"name": "NVIDIA H200"}, 1))
            reason = "hw_thermal_slowdown" if rank == "1" else ""
            rows.setdefault("lockstep_gpu_throttled", []).append((gpu | {"reason": reason}, float(bool(reason))))
            errors = [(gpu | {"xid": "79"}, float(rank == "1"))]
            rows.setdefault("lockstep_gpu_xid_errors_total", []).extend(errors)
            if rank == "1":
                newest = (gpu | {"xid": "79"}, self._start)
                rows.setdefault("lockstep_gpu_xid_last_timestamp_seconds", []).append(newest)
            if rank is not None:
                holder = gpu | {"job_id": JOB, "rank": rank}
                for name in ("info", "ratio"):
                    rows.setdefault(f"lockstep_gpu_allocation_{name}", []).append((holder, 1))
        seconds = [({"job_id": JOB, "cause": cause}, 3 * age * share) for cause, share in CAUSES.items()]
        rows["lockstep_gpu_seconds_total"] = [*seconds, ({"job_id": "", "cause": "idle"}, age)]
        return rows


@contextmanager
def page_of_a_gpu_cluster() -> Iterator[str]:
    """Serve the page; yields its address."""
    registry = CollectorRegistry()
    registry.register(GpuCluster())
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
