"""What the server asks of the files that a spec names."""

from __future__ import annotations

from pathlib import Path

from lockstep.contract import idx
from lockstep.contract.spec.traversal import Shown
from lockstep.server.spec.rules import Site, SiteRule, is_file
from lockstep.v1.job_spec_pb2 import JobSpec

_IDX_LIMITS = f"a folder with {', '.join(idx.FILES)}, each plain or gzipped"


def _shown_path(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-150:]}"


def _idx_folder(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if len(_missing(spec, site)) < len(idx.FILES):
        return None
    # Why, is not told: a spec shall not be a way to learn which paths there are.
    folder = _shown_path(Path(spec.data.idx.root))
    return f"data.idx.root: {folder} is no folder with the four IDX files that can be read; allowed: {_IDX_LIMITS}"


def _idx_files(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    missing = _missing(spec, site)
    if len(missing) in (0, len(idx.FILES)):
        return None
    what = ", ".join(f"{name}[.gz]" for name in missing)
    return f"data.idx.root: {_shown_path(Path(spec.data.idx.root))} has no {what}; allowed: {_IDX_LIMITS}"


def _missing(spec: JobSpec, site: Site) -> list[str]:
    folder = Path(spec.data.idx.root)
    if not site.shares_files_with_workers:
        return []
    return [name for name in idx.FILES if not any(is_file(folder / (name + end)) for end in ("", ".gz"))]


DATASET_RULES: tuple[SiteRule, ...] = (
    SiteRule(
        "data.idx.root",
        ("data.idx.root",),
        "a folder with the four IDX files",
        "give the folder as the workers see it; a relative path starts at the server's working directory",
        _idx_folder,
    ),
    SiteRule(
        "data.idx.root",
        ("data.idx.root",),
        "a folder with the four IDX files, each plain or gzipped",
        "put the files there under these names, or name another folder",
        _idx_files,
    ),
)
