"""What is told of the machine."""

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lockstep.workers.node.host import Host

Times = namedtuple("Times", "user nice system idle iowait guest")
TIMES = Times(100.0, 0.0, 10.0, 200.0, 5.0, 50.0)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[Times]:
    times = [TIMES]
    monkeypatch.setattr(psutil, "cpu_times", lambda: times[-1])
    return times


def test_this_machine_tells_what_it_has(tmp_path: Path) -> None:
    told = Host(tmp_path).sample()
    assert told.cpus >= 1
    assert 0 < told.memory_used_bytes < told.memory_total_bytes
    assert 0 < told.disk_used_bytes < told.disk_total_bytes


def test_cpus_are_busy_for_the_share_of_the_time_since_the_sample_before(tmp_path: Path, times: list[Times]) -> None:
    host = Host(tmp_path)
    assert not host.sample().HasField("cpu_utilization_ratio"), "no time has passed"
    times.append(TIMES._replace(user=102.0, guest=52.0, system=11.0, idle=204.0, iowait=6.0))
    assert host.sample().cpu_utilization_ratio == pytest.approx(3 / 8)
    times.append(times[-1]._replace(idle=206.0))
    assert host.sample().cpu_utilization_ratio == 0
    times.append(times[-1]._replace(idle=206.1))
    assert not host.sample().HasField("cpu_utilization_ratio"), "too short to say"


def test_what_cannot_be_measured_is_unset_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    host = Host(tmp_path)
    monkeypatch.setattr(psutil, "cpu_times", fail)
    monkeypatch.setattr(psutil, "disk_usage", fail)
    told = host.sample()
    for name in ("cpu_utilization_ratio", "disk_total_bytes", "disk_read_bytes_total"):
        assert not told.HasField(name), name
    assert told.memory_total_bytes > 0


def has_devices(folder: Path, *devices: str) -> Path:
    for device in devices:
        (folder / device / "device").mkdir(parents=True)
    return folder


def test_bytes_are_counted_once_and_not_by_each_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = {name: SimpleNamespace(read_bytes=10, write_bytes=20) for name in ("nvme0n1", "nvme0n1p1", "dm-0", "sda")}
    wires = {name: SimpleNamespace(bytes_recv=3, bytes_sent=4) for name in ("lo", "eth0", "docker0", "veth1")}
    monkeypatch.setattr(psutil, "disk_io_counters", lambda perdisk: disks)
    monkeypatch.setattr(psutil, "net_io_counters", lambda pernic: wires)
    told = Host(tmp_path, has_devices(tmp_path / "sys", "block/nvme0n1", "block/sda", "class/net/eth0")).sample()
    assert (told.disk_read_bytes_total, told.disk_written_bytes_total) == (20, 40)
    assert (told.network_received_bytes_total, told.network_sent_bytes_total) == (3, 4)


def test_in_a_container_its_own_network_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wires = {name: SimpleNamespace(bytes_recv=3, bytes_sent=4) for name in ("lo", "eth0")}
    monkeypatch.setattr(psutil, "net_io_counters", lambda pernic: wires)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda perdisk: None)
    told = Host(tmp_path, tmp_path).sample()
    assert told.network_sent_bytes_total == 4
    assert not told.HasField("disk_read_bytes_total")
