"""How many CPUs this process may use: those that it may run on, and no more than its container's share of time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

_CGROUP_FOLDER = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Where the controller of version 1 is mounted: by itself, or with the accounts of CPU time.
_V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def available_cpus(cgroup_folder: Path = _CGROUP_FOLDER, own_groups: Path = _OWN_GROUPS) -> int:
    """Count the CPUs that this process may use, at least 1.

    A quota of time, as of `docker --cpus`, counts by its whole CPUs: workers compute all the time, and one more than
    that would hold all others up.

    Args:
        cgroup_folder: where control groups are mounted.
        own_groups: says to which of them this process belongs, as /proc/self/cgroup does.
    """
    cpus = len(os.sched_getaffinity(0))
    quotas = _quotas(cgroup_folder, own_groups)
    return max(1, min([cpus, *(int(quota) for quota in quotas)]))


def _quotas(cgroup_folder: Path, own_groups: Path) -> list[float]:
    """The quotas, in CPUs, of this process's groups and of those that they lie in; the lowest one holds."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return []
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += _along(cgroup_folder, path, _quota_v2)
            quotas += _along(cgroup_folder / "unified", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for name in _V1_FOLDERS:
                quotas += _along(cgroup_folder / name, path, _quota_v1)
    return quotas


def _along(mount: Path, path: str, quota_of: Callable[[Path], float | None]) -> list[float]:
    """The quotas from a group up to the mount. In a container that may lie at the group itself, whatever its path."""
    group = PurePosixPath(path.lstrip("/"))
    folders = [mount / group, *(mount / parent for parent in group.parents)]
    return [quota for quota in map(quota_of, folders) if quota is not None]


def _quota_v2(folder: Path) -> float | None:
    """Read `cpu.max`, microseconds of quota and of period; "max" is none."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    """Read the quota and the period in microseconds; -1 is none."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    return None
