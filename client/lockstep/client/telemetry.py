"""What machines and GPUs do, as plain typed values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from google.protobuf.message import Message

from lockstep.client.types import to_datetime
from lockstep.v1 import telemetry_pb2


def _optional(message: Message, *names: str) -> dict[str, Any]:
    """The fields of these names; None for one that is unset."""
    return {name: getattr(message, name) if message.HasField(name) else None for name in names}


@dataclass(frozen=True, slots=True)
class HostTelemetry:
    """A machine. What cannot be measured there is None; ratios are 0 to 1.

    Attributes:
        cpus: logical CPUs.
        cpu_utilization_ratio: share of their time in which they were busy in the last seconds.
        memory_total_bytes: memory.
        memory_used_bytes: what of it is not available to new processes.
        disk_total_bytes: size of the file system of Ray's temporary folder and of the logs of workers.
        disk_used_bytes: what is used of it.
        disk_read_bytes_total: read from all disks since the machine was started.
        disk_written_bytes_total: written to them, likewise.
        network_received_bytes_total: received over the network, likewise.
        network_sent_bytes_total: sent over it, likewise.
    """

    cpus: int
    cpu_utilization_ratio: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    disk_total_bytes: int | None
    disk_used_bytes: int | None
    disk_read_bytes_total: int | None
    disk_written_bytes_total: int | None
    network_received_bytes_total: int | None
    network_sent_bytes_total: int | None

    @classmethod
    def from_proto(cls, host: telemetry_pb2.HostTelemetry) -> Self:
        return cls(cpus=host.cpus, **_optional(host, *(field.name for field in fields(cls)[1:])))


@dataclass(frozen=True, slots=True)
class GpuTelemetry:
    """A GPU. What it does not tell is None; ratios are 0 to 1.

    Attributes:
        index: its number on its node, as NVML counts.
        uuid: the same for the life of the GPU.
        name: product, such as "NVIDIA H200".
        throttle_reasons: why its clocks are lower than they could be, such as "sw_power_cap".
        xid_errors: critical errors of the driver since the agent was started, by XID code.
        xid_error_ages_s: how many seconds before the sample the newest of them came, by XID code.
        utilization_ratio: share of the time in which some kernel ran, however small.
        memory_utilization_ratio: share of the time in which memory was read or written.
        memory_total_bytes: memory.
        memory_used_bytes: memory in use.
        power_watts: power.
        power_limit_watts: most power that it is allowed.
        energy_joules_total: energy since the driver was loaded.
        temperature_celsius: of the chip.
        sm_clock_hertz: clock of the streaming multiprocessors.
        sm_clock_max_hertz: most that this clock can be.
        memory_clock_hertz: clock of the memory.
        sm_active_ratio: share of the multiprocessors' time in which they had work; like the next three for Hopper and
            later.
        sm_occupancy_ratio: share of the resident warps that they could have.
        tensor_active_ratio: share of the time in which tensor cores were busy.
        memory_bandwidth_ratio: share of the memory's bandwidth that was used.
    """

    index: int
    uuid: str
    name: str
    throttle_reasons: tuple[str, ...] | None
    xid_errors: dict[int, int] | None
    xid_error_ages_s: dict[int, float] | None
    utilization_ratio: float | None
    memory_utilization_ratio: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    power_watts: float | None
    power_limit_watts: float | None
    energy_joules_total: float | None
    temperature_celsius: float | None
    sm_clock_hertz: float | None
    sm_clock_max_hertz: float | None
    memory_clock_hertz: float | None
    sm_active_ratio: float | None
    sm_occupancy_ratio: float | None
    tensor_active_ratio: float | None
    memory_bandwidth_ratio: float | None

    @classmethod
    def from_proto(cls, gpu: telemetry_pb2.GpuTelemetry) -> Self:
        return cls(
            gpu.index,
            gpu.uuid,
            gpu.name,
            tuple(gpu.throttle_reasons) if gpu.knows_throttle_reasons else None,
            dict(gpu.xid_errors) if gpu.knows_xid_errors else None,
            dict(gpu.xid_error_ages_s) if gpu.knows_xid_errors else None,
            **_optional(gpu, *(field.name for field in fields(cls)[6:])),
        )


@dataclass(frozen=True, slots=True)
class NodeTelemetry:
    """A sample of a node.

    Attributes:
        receive_time: when it came to the server, UTC.
        host: the machine.
        gpus: its GPUs; none without a driver.
    """

    receive_time: datetime
    host: HostTelemetry
    gpus: tuple[GpuTelemetry, ...]

    @classmethod
    def from_proto(cls, telemetry: telemetry_pb2.NodeTelemetry) -> Self:
        return cls(
            to_datetime(telemetry.receive_time),
            HostTelemetry.from_proto(telemetry.host),
            tuple(map(GpuTelemetry.from_proto, telemetry.gpus)),
        )
