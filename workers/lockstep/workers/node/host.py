"""A machine as the kernel tells of it. What cannot be measured is left unset."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from lockstep.v1.telemetry_pb2 import HostTelemetry

SHORTEST_S = 0.5
"""CPU time, of all CPUs together, from which on their use is told: what is shorter says nothing."""


class Host:
    """The machine that this process is on.

    Args:
        folder: in the file system whose use is told.
        sys: where the kernel tells of devices.
    """

    def __init__(self, folder: Path, sys: Path = Path("/sys")) -> None:
        self._folder, self._sys = folder, sys
        self._cpu_before = psutil.cpu_times()

    def sample(self) -> HostTelemetry:
        """Measure; the CPUs' use is that since the call before, or since this object was made."""
        told = HostTelemetry(cpus=psutil.cpu_count() or 0)
        for measure in (self._measure_cpus, self._measure_memory, self._measure_disk, self._measure_network):
            with contextlib.suppress(OSError, psutil.Error, NotImplementedError):
                measure(told)
        return told

    def _measure_cpus(self, told: HostTelemetry) -> None:
        before, self._cpu_before = self._cpu_before, psutil.cpu_times()
        spent = {kind: getattr(self._cpu_before, kind) - getattr(before, kind) for kind in before._fields}
        # What guests take is in user and nice already.
        total = sum(seconds for kind, seconds in spent.items() if not kind.startswith("guest"))
        idle = spent["idle"] + spent.get("iowait", 0.0)
        if total >= SHORTEST_S:
            told.cpu_utilization_ratio = min(1.0, max(0.0, 1.0 - idle / total))

    def _measure_memory(self, told: HostTelemetry) -> None:
        memory = psutil.virtual_memory()
        told.memory_total_bytes = memory.total
        told.memory_used_bytes = max(0, memory.total - memory.available)

    def _measure_disk(self, told: HostTelemetry) -> None:
        use = psutil.disk_usage(str(self._folder))
        told.disk_total_bytes, told.disk_used_bytes = use.total, use.used
        disks = self._real(psutil.disk_io_counters(perdisk=True) or {}, "block")
        if disks:
            told.disk_read_bytes_total = sum(disk.read_bytes for disk in disks)
            told.disk_written_bytes_total = sum(disk.write_bytes for disk in disks)

    def _measure_network(self, told: HostTelemetry) -> None:
        counters = {name: counts for name, counts in psutil.net_io_counters(pernic=True).items() if name != "lo"}
        # In a container no interface is a device; then there are no bridges either.
        interfaces = self._real(counters, "class/net") or list(counters.values())
        if interfaces:
            told.network_received_bytes_total = sum(interface.bytes_recv for interface in interfaces)
            told.network_sent_bytes_total = sum(interface.bytes_sent for interface in interfaces)

    def _real(self, counters: Mapping[str, Any], kind: str) -> list[Any]:
        """Those of real devices: partitions, volumes and bridges would count the same bytes once more."""
        return [counts for name, counts in counters.items() if (self._sys / kind / name / "device").exists()]
