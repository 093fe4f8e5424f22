"""What a spec may say of checkpoints: where they go, and what a job starts from."""

from __future__ import annotations

import posixpath
from importlib.util import find_spec
from pathlib import Path

from lockstep.contract.checkpoints import MANIFEST_FILE
from lockstep.contract.spec.traversal import Shown
from lockstep.contract.spec.values import STORES
from lockstep.server.process.foreign_files import local_path
from lockstep.server.spec.rules import Site, SiteRule, is_file
from lockstep.v1.job_spec_pb2 import JobSpec

_FIELDS = ("recovery.checkpoint_uri", "init_from.uri")


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


def _missing_package(field: str) -> SiteRule:
    def problem(spec: JobSpec, site: Site, shown: Shown) -> str | None:
        package = STORES.get(_folder_of(spec, field).partition("://")[0], "")
        if not package or is_installed(package):
            return None
        return f"{shown(field)}, which needs the package {package}, and the server does not have it; pip install it"

    hint = "where the server and the workers run, or set it to an absolute path"
    return SiteRule(field, (field,), "a store whose package is installed", hint, problem)


def is_installed(package: str) -> bool:
    """Say whether a package of `STORES` is there; their modules have the same names."""
    return find_spec(package) is not None


def _outside_of_roots(field: str) -> SiteRule:
    def problem(spec: JobSpec, site: Site, shown: Shown) -> str | None:
        folder = _folder_of(spec, field)
        if not folder or not site.checkpoint_roots or any(is_below(folder, root) for root in site.checkpoint_roots):
            return None
        return (
            f"{shown(field)}; allowed by the operator of this server: folders below {', '.join(site.checkpoint_roots)}"
        )

    return SiteRule(field, (field,), "below the server's --checkpoint-roots", "choose one of them", problem)


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


CHECKPOINT_RULES: tuple[SiteRule, ...] = (
    SiteRule(
        "init_from.uri",
        ("init_from.uri",),
        "a folder with a checkpoint, where server and workers share files",
        "set it to the folder of one step, such as /data/job-1/step-000000000200; lockstep checkpoints JOB lists them",
        _no_checkpoint_there,
    ),
    *(_missing_package(field) for field in _FIELDS),
    *(_outside_of_roots(field) for field in _FIELDS),
)
