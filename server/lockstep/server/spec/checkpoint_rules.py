"""What a spec may say of checkpoints: where they go, and what a job starts from."""

from __future__ import annotations

import posixpath
from importlib.util import find_spec
from pathlib import Path

from lockstep.contract.checkpoints import MANIFEST_FILE
from lockstep.server.process.foreign_files import local_path
from lockstep.server.spec.rules import CrossRule, Shown, Site, is_file, is_path
from lockstep.v1.job_spec_pb2 import JobSpec

# What can be written to and outlives its writer, with the package that reaches it. fsspec knows more: file systems in
# the memory of one process, and such as can only be read.
STORES = {
    "file": "",
    "local": "",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hdfs": "pyarrow",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}
FOLDER_LIMITS = (
    f"an absolute path, or a URI of {', '.join(STORES)}, of at most 4,096 characters without control characters, and "
    'without "::" in a URI'
)
FOLDER_HINT = "set it to a folder such as /data/checkpoints or s3://bucket/checkpoints"
_FIELDS = ("recovery.checkpoint_uri", "init_from.uri")


def is_folder(value: str) -> bool:
    """Say whether it is an absolute path, or a URI of a store, wherever it leads."""
    if not is_path(value):
        return False
    if value.startswith("/"):
        return True
    # A path on this machine without the slash would start at whatever the working directory is.
    scheme, separator, rest = value.partition("://")
    if scheme in ("file", "local") and not rest.startswith("/"):
        return False
    return bool(separator) and scheme in STORES and "::" not in rest and rest.strip("/") != ""


def is_below(folder: str, root: str) -> bool:
    """Say whether a folder is a root or lies below it, by their names; links are not looked at."""
    inner, outer = _parts(folder), _parts(root)
    return ".." not in inner and inner[: len(outer)] == outer


def _parts(folder: str) -> list[str]:
    path = local_path(folder)
    scheme, _, rest = ("file", "", path) if path is not None else folder.partition("://")
    return [scheme, *(part for part in rest.split(posixpath.sep) if part not in ("", "."))]


def _folder_of(spec: JobSpec, field: str) -> str:
    return spec.recovery.checkpoint_uri if field == _FIELDS[0] else spec.init_from.uri


def _missing_package(field: str) -> CrossRule:
    def problem(spec: JobSpec, site: Site, shown: Shown) -> str | None:
        package = STORES.get(_folder_of(spec, field).partition("://")[0], "")
        if not package or is_installed(package):
            return None
        return f"{shown(field)}, which needs the package {package}, and the server does not have it; pip install it"

    hint = "where the server and the workers run, or set it to an absolute path"
    return CrossRule(field, (field,), "a store whose package is installed", hint, problem)


def is_installed(package: str) -> bool:
    """Say whether a package of `STORES` is there; their modules have the same names."""
    return find_spec(package) is not None


def _outside_of_roots(field: str) -> CrossRule:
    def problem(spec: JobSpec, site: Site, shown: Shown) -> str | None:
        folder = _folder_of(spec, field)
        if not folder or not site.checkpoint_roots or any(is_below(folder, root) for root in site.checkpoint_roots):
            return None
        return (
            f"{shown(field)}; allowed by the operator of this server: folders below {', '.join(site.checkpoint_roots)}"
        )

    return CrossRule(field, (field,), "below the server's --checkpoint-roots", "choose one of them", problem)


def _one_source(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not spec.HasField("init_from") or bool(spec.init_from.job_id) != bool(spec.init_from.uri):
        return None
    if spec.init_from.job_id:
        return f"{shown('init_from.job_id')} and {shown('init_from.uri')}; allowed: one of the two"
    return "init_from has neither job_id nor uri; allowed: one of the two"


def _no_checkpoint_there(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    folder = spec.init_from.uri
    path = local_path(folder) if folder and site.shares_files_with_workers else None
    if path is None or is_file(Path(path, MANIFEST_FILE)):
        return None
    if site.checkpoint_roots and not any(is_below(folder, root) for root in site.checkpoint_roots):
        return None  # that alone is told
    # Why, is not told: a spec shall not be a way to learn which paths there are.
    problem = "which is no folder of a checkpoint that can be read"
    return f"{shown('init_from.uri')}, {problem}; allowed: one with {MANIFEST_FILE}"


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
    CrossRule(
        "init_from.uri",
        ("init_from.uri",),
        "a folder with a checkpoint, where server and workers share files",
        "set it to the folder of one step, such as /data/job-1/step-000000000200; lockstep checkpoints JOB lists them",
        _no_checkpoint_there,
    ),
    *(_missing_package(field) for field in _FIELDS),
    *(_outside_of_roots(field) for field in _FIELDS),
)
