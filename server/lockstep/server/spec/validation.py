"""A spec as it is submitted becomes one that is stored: the rules of the contract, then those of this server."""

from __future__ import annotations

from lockstep.contract.spec.fields import kinds_of, place_of
from lockstep.contract.spec.traversal import CrossRule, Resolution
from lockstep.contract.spec.validation import CHOICE_RULES, FIELD_RULES, SPEC_RULES, fill_in_defaults, validate
from lockstep.server.errors import InvalidSpec, Violation
from lockstep.server.spec.checkpoint_rules import CHECKPOINT_RULES
from lockstep.server.spec.dataset_rules import DATASET_RULES
from lockstep.server.spec.rules import Site, SiteRule, absolute, apply_site_rule
from lockstep.server.spec.size_rules import SIZE_RULES
from lockstep.v1.job_spec_pb2 import JobSpec

__all__ = [
    "CHOICE_RULES",
    "CROSS_RULES",
    "FIELD_RULES",
    "MAX_LABELS",
    "fields_with_files",
    "fill_in_defaults",
    "resolve",
]

SITE_RULES: tuple[SiteRule, ...] = (*DATASET_RULES, *CHECKPOINT_RULES, *SIZE_RULES)
CROSS_RULES: tuple[CrossRule | SiteRule, ...] = (*SPEC_RULES, *SITE_RULES)

MAX_LABELS = next(rule.counts[1] for rule in FIELD_RULES if rule.path == "labels" and rule.counts)
_PATHS = tuple(rule.path for rule in FIELD_RULES if rule.is_path)


def resolve(submitted: JobSpec, site: Site) -> JobSpec:
    """Check a spec and fill in every default.

    Args:
        submitted: the spec as the user wrote it; it is not changed.
        site: where relative paths start, and whether the workers' files can be seen from here.

    Returns:
        A new spec that says everything.

    Raises:
        InvalidSpec: with all violations at once.
    """
    resolution = validate(submitted)
    _make_absolute(resolution, site)
    for rule in SITE_RULES:
        apply_site_rule(rule, resolution, site)
    if resolution.violations:
        raise InvalidSpec([Violation(path, message) for path, message in resolution.violations])
    return resolution.spec


def fields_with_files(submitted: JobSpec) -> list[str]:
    """List the fields of a spec at whose files `resolve` will look."""
    data = submitted.data.WhichOneof("kind")
    reads_files = data is not None and kinds_of("data")[data].reads_files
    named = [path for path in _PATHS if reads_files and path.startswith(f"data.{data}.")]
    return named + (["init_from.uri"] if submitted.init_from.uri else [])


def _make_absolute(resolution: Resolution, site: Site) -> None:
    for path in _PATHS:
        place = place_of(path)
        parent = resolution.parents.of(place)
        if parent is not None and path not in resolution.wrong:
            setattr(parent, place.name, absolute(getattr(parent, place.name), site))
