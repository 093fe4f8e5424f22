"""What a spec may say of checkpoints: where they go, and what a job starts from."""

from __future__ import annotations

import fsspec

from lockstep.server.rules import CrossRule, Shown, Site, is_path
from lockstep.v1.job_spec_pb2 import JobSpec

FOLDER_LIMITS = (
    "an absolute path, or a URI with a scheme that fsspec knows, of at most 4,096 characters without control characters"
)
FOLDER_MEND = "set it to a folder such as /data/checkpoints or s3://bucket/checkpoints"

# Schemes of paths on this machine; without the slash they would start at whatever the working directory is.
_LOCAL_SCHEMES = ("file", "local")


def is_folder(value: str) -> bool:
    """Say whether it is an absolute path, or a URI that fsspec can open, wherever it leads."""
    if not is_path(value):
        return False
    scheme, separator, rest = value.partition("://")
    if not separator:
        return value.startswith("/")
    if scheme in _LOCAL_SCHEMES and not rest.startswith("/"):
        return False
    return scheme in fsspec.available_protocols() and rest.strip("/") != ""


def _one_source(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not spec.HasField("init_from") or bool(spec.init_from.job_id) != bool(spec.init_from.uri):
        return None
    if spec.init_from.job_id:
        return f"{shown('init_from.job_id')} and {shown('init_from.uri')}; allowed: one of the two"
    return "init_from has neither job_id nor uri; allowed: one of the two"


def _step_without_job(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not spec.init_from.HasField("step") or spec.init_from.job_id:
        return None
    return f"{shown('init_from.step')}; allowed: only with init_from.job_id"


def _more_than_workers(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if spec.resources.min_workers <= spec.resources.workers:
        return None
    return f"{shown('resources.min_workers')}; allowed: at most resources.workers, and {shown('resources.workers')}"


RECOVERY_CROSS_RULES: tuple[CrossRule, ...] = (
    CrossRule(
        "resources.min_workers",
        ("resources.min_workers", "resources.workers"),
        "at most resources.workers",
        "lower it, or ask for more workers",
        _more_than_workers,
    ),
    CrossRule(
        "init_from",
        ("init_from.job_id", "init_from.uri"),
        "exactly one of job_id and uri",
        "set job_id to start from a checkpoint of a job of this server, or uri to the folder of a checkpoint",
        _one_source,
    ),
    CrossRule(
        "init_from.step",
        ("init_from.step", "init_from.job_id"),
        "only with init_from.job_id",
        "remove it; the folder of a checkpoint is of one step",
        _step_without_job,
    ),
)
