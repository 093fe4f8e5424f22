"""What the node agent reads: the machine, and its GPUs by NVML."""

import threading
import time
from collections.abc import Iterator

import torch

from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry
from lockstep.workers.node.agent import Sampler
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, judge, not_run

HOST = ("memory_total_bytes", "memory_used_bytes", "disk_total_bytes", "disk_used_bytes", "cpu_utilization_ratio")
EVERY_GPU = (
    *("memory_total_bytes", "memory_used_bytes", "utilization_ratio", "memory_utilization_ratio", "power_watts"),
    *("power_limit_watts", "temperature_celsius", "sm_clock_hertz", "sm_clock_max_hertz", "memory_clock_hertz"),
)
SINCE_HOPPER = ("sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio", "memory_bandwidth_ratio")
HOPPER = 9
BUSY_S = 2.5


def check(plan: Plan) -> Iterator[Row]:
    """Two samples with work between them."""
    sampler = Sampler()
    sampler()
    keep_busy(plan.device, BUSY_S)
    told = sampler()
    yield fields_of("the machine's figures", told.host, HOST)
    if not plan.is_gpu:
        yield not_run("NVML's figures", f"no GPU; NVML tells of {len(told.gpus)}")
        return
    if not told.gpus:
        yield judge("NVML's figures", False, "NVML tells of no GPU", "at least one")
        return
    device = torch.device(plan.device)
    yield fields_of("NVML's figures", told.gpus[0], EVERY_GPU)
    if torch.cuda.get_device_capability(device)[0] >= HOPPER:
        yield fields_of("NVML's figures by GPM", told.gpus[0], SINCE_HOPPER)
    else:
        yield not_run("NVML's figures by GPM", "a GPU before Hopper")
    name, uuid = told.gpus[0].name, told.gpus[0].uuid
    ours = str(torch.cuda.get_device_properties(device).uuid)
    is_known = name == torch.cuda.get_device_name(device) and ours in uuid
    wanted = f"{torch.cuda.get_device_name(device)} {ours}"
    yield judge("the GPU is the same to NVML and to torch", is_known, f"{name} {uuid}", wanted)
    knows = [field for field in ("knows_throttle_reasons", "knows_xid_errors") if getattr(told.gpus[0], field)]
    yield judge("NVML tells of throttling and of XID errors", len(knows) == 2, ", ".join(knows) or "neither", "both")


def fields_of(check: str, told: HostTelemetry | GpuTelemetry, wanted: tuple[str, ...]) -> Row:
    """Which of the figures are there."""
    unset = [name for name in wanted if not told.HasField(name)]
    figures = {name: getattr(told, name) for name in wanted if name not in unset}
    details = [f"not told: {name}" for name in unset] + [f"{name} {value:.6g}" for name, value in figures.items()]
    return judge(check, not unset, f"{len(figures)} of {len(wanted)}", "all", details, **figures)


def keep_busy(device: str, seconds: float) -> None:
    """Have the device compute for a while."""
    matrix = torch.randn(1024, 1024, device=device)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(10):
            torch.mm(matrix, matrix)
        if matrix.is_cuda:
            torch.cuda.synchronize(matrix.device)
        threading.Event().wait(0.01)
