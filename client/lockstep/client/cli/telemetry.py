"""What a node does, in words: a line for the machine and one for each GPU."""

from __future__ import annotations

from lockstep.client.cli import output
from lockstep.client.cluster import Node, Worker
from lockstep.client.telemetry import GpuTelemetry, HostTelemetry

_FULL_DISK_RATIO = 0.9


def telemetry_lines(node: Node) -> list[str]:
    """What is known of a node, such as "CPU 37 %, memory 12.3 GiB of 64.0 GiB"; nothing without a sample."""
    if node.telemetry is None:
        return []
    lines = [_describe_host(node.telemetry.host)] + [_describe_gpu(gpu, node) for gpu in node.telemetry.gpus]
    return [line for line in lines if line]


def _describe_host(host: HostTelemetry) -> str:
    facts = []
    if host.cpu_utilization_ratio is not None:
        facts.append(f"CPU {_percent(host.cpu_utilization_ratio)}")
    facts += _memory(host.memory_used_bytes, host.memory_total_bytes)
    if host.disk_used_bytes is not None and host.disk_total_bytes:
        use = host.disk_used_bytes / host.disk_total_bytes
        facts += [f"disk {_percent(use)} full"] if use >= _FULL_DISK_RATIO else []
    return ", ".join(facts)


def _describe_gpu(gpu: GpuTelemetry, node: Node) -> str:
    """Such as "GPU 0 NVIDIA H200: SM activity 87 %, memory 41.0 GiB of 139.8 GiB, 512 W of 700 W, 64 °C, job-1a"."""
    facts = []
    if gpu.sm_active_ratio is not None:
        facts.append(f"SM activity {_percent(gpu.sm_active_ratio)}")
    elif gpu.utilization_ratio is not None:
        facts.append(f"utilization {_percent(gpu.utilization_ratio)}")
    facts += _memory(gpu.memory_used_bytes, gpu.memory_total_bytes)
    if gpu.power_watts is not None:
        limit = f" of {gpu.power_limit_watts:.0f} W" if gpu.power_limit_watts else ""
        facts.append(f"{gpu.power_watts:.0f} W{limit}")
    if gpu.temperature_celsius is not None:
        facts.append(f"{gpu.temperature_celsius:.0f} °C")
    if not facts:
        facts.append("does not answer")
    if gpu.throttle_reasons:
        facts.append(f"throttled ({', '.join(reason.replace('_', ' ') for reason in gpu.throttle_reasons)})")
    if gpu.xid_errors:
        facts += [f"error XID {code}{_times(count)}" for code, count in sorted(gpu.xid_errors.items())]
    facts += [
        f"{worker.job_id} worker {worker.number}{_part_of(worker)}"
        for worker in node.workers
        if worker.job_id and gpu.index in worker.gpu_indexes
    ]
    name = f"GPU {gpu.index} {gpu.name}".rstrip()
    return f"{name}: {', '.join(facts)}"


def _part_of(worker: Worker) -> str:
    """How much of its GPU it holds, unless that is the whole."""
    return f" ({_percent(worker.resources.gpus)} of it)" if 0 < worker.resources.gpus < 1 else ""


def _memory(used_bytes: int | None, total_bytes: int | None) -> list[str]:
    if used_bytes is None or not total_bytes:
        return []
    return [f"memory {output.size(used_bytes)} of {output.size(total_bytes)}"]


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def _times(count: int) -> str:
    return "" if count == 1 else f" ({count} times)"
