"""How many CPUs count, on trees of control groups as kernels and containers show them."""

import os
from pathlib import Path

import pytest

from lockstep.server.process.cpus import available_cpus

HERE = len(os.sched_getaffinity(0))


def count(tmp_path: Path, own: str, **files: str) -> int:
    for path, text in files.items():
        file = tmp_path / "cgroup" / path.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "own").write_text(own)
    return available_cpus(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}),
        ("0::/\n", {"cpu.max": "150000 100000\n"}),
        ("0::/\n", {"cpu.max": "20000 100000\n"}),
        ("0::/a/b\n", {"a__b__cpu.max": "max 100000\n", "a__cpu.max": "100000 100000\n"}),
        ("0::/a/b\n", {"cpu.max": "100000 100000\n"}),
        ("1:cpu:/a\n", {"cpu__a__cpu.cfs_quota_us": "100000\n", "cpu__a__cpu.cfs_period_us": "100000\n"}),
        ("1:name=systemd:/\n4:cpu,cpuacct:/x\n", {
            "cpu,cpuacct__cpu.cfs_quota_us": "50000\n", "cpu,cpuacct__cpu.cfs_period_us": "50000\n"
        }),
    ],
)  # fmt: skip
def test_a_containers_quota_of_time_counts_by_its_whole_cpus(tmp_path: Path, own: str, files: dict[str, str]) -> None:
    assert HERE > 1, "one CPU is what the quota leaves"
    assert count(tmp_path, own, **files) == 1


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "nonsense\n"}),
        ("0::/\n", {"cpu.max": "6400000 100\n"}),
        ("0::/\n", {}),
        ("", {}),
        ("1:cpu:/\n", {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}),
        ("1:cpu:/\n", {"cpu__cpu.cfs_quota_us": "100000\n", "cpu__cpu.cfs_period_us": "0\n"}),
    ],
)
def test_without_a_quota_all_cpus_count_that_the_process_may_run_on(
    tmp_path: Path, own: str, files: dict[str, str]
) -> None:
    assert count(tmp_path, own, **files) == HERE
