"""The rules that need to know the place where the server runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockstep.contract.spec.traversal import Resolution, RuleOverFields, Shown
from lockstep.v1.job_spec_pb2 import JobSpec

DEFAULT_POINTS_PER_JOB = 100_000_000


@dataclass(frozen=True)
class Site:
    """What the rules may know of the place where the server runs.

    Attributes:
        working_directory: where relative paths of a spec start.
        shares_files_with_workers: whether a path that is missing here is missing for the workers, too.
        checkpoint_roots: folders, as paths or URIs, in which checkpoints may lie; empty for any.
        points_per_job: the most metric points that a job may make.
    """

    working_directory: Path
    shares_files_with_workers: bool
    checkpoint_roots: tuple[str, ...] = ()
    points_per_job: int = DEFAULT_POINTS_PER_JOB


@dataclass(frozen=True)
class SiteRule(RuleOverFields):
    """A rule over fields and what only this server knows: its files, its packages, what its operator allows.

    Attributes:
        problem: the sentence without the hint when a spec breaks the rule, else None.
    """

    problem: Callable[[JobSpec, Site, Shown], str | None]


def apply_site_rule(rule: SiteRule, resolution: Resolution, site: Site) -> None:
    """Check a rule, when each field that it reads is right by itself."""
    if not resolution.can_judge(rule):
        return
    problem = rule.problem(resolution.spec, site, resolution.shown)
    if problem is not None:
        resolution.violations.append((rule.path, f"{problem}; {rule.hint}"))


def absolute(path: str, site: Site) -> str:
    """Make a path absolute, from the server's working directory on."""
    # Not Path.resolve: links stay as the user wrote them, since they may lead elsewhere where the workers are.
    return os.path.abspath(site.working_directory / path)  # noqa: PTH100


def is_file(path: Path) -> bool:
    """Whether there is a file that this user may look at."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
