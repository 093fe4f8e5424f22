"""The judgement of a spec: everything that it alone can have wrong, all at once."""

from __future__ import annotations

from collections.abc import Iterable

from lockstep.contract.bounds import MOST_SHARDS
from lockstep.contract.spec.cross_field import CROSS_RULES
from lockstep.contract.spec.cross_field_data import DATA_CROSS_RULES
from lockstep.contract.spec.fields import SECTIONS_WITH_KINDS, field_rules
from lockstep.contract.spec.traversal import (
    ChoiceRule,
    ComputedDefault,
    CrossRule,
    Resolution,
    apply_choice,
    apply_cross,
    apply_fields,
    doubt_unread,
    fill_in,
    sections_of,
)
from lockstep.v1.job_spec_pb2 import JobSpec


def _name(spec: JobSpec) -> str | None:
    kind = spec.model.WhichOneof("kind")
    return None if kind is None else kind.replace("_", "-")


def _max_epochs(spec: JobSpec) -> int | None:
    return None if spec.training.HasField("max_steps") else 10


def _shards(spec: JobSpec) -> int:
    workers, batch_size = spec.resources.workers, spec.training.batch_size
    wanted = 4 if workers <= 4 else 1 << (workers - 1).bit_length()
    if spec.resources.gpus_per_worker:  # each shard more is a pass more for a GPU that could take all at once
        wanted = workers
    return max(1, min(wanted, batch_size, MOST_SHARDS))


FIELD_RULES = field_rules()
COMPUTED_DEFAULTS = (
    ComputedDefault("name", (), _name),
    ComputedDefault("training.max_epochs", ("training.max_steps",), _max_epochs),
    ComputedDefault(
        "resources.shards", ("resources.workers", "resources.gpus_per_worker", "training.batch_size"), _shards
    ),
)
CHOICE_RULES = tuple(map(ChoiceRule, SECTIONS_WITH_KINDS))
SPEC_RULES: tuple[CrossRule, ...] = (*CROSS_RULES, *DATA_CROSS_RULES)
"""The rules over several fields that need nothing but the spec."""

_SECTIONS = sections_of(FIELD_RULES)


def validate(submitted: JobSpec, unread: Iterable[str] = ()) -> Resolution:
    """Check a spec by itself and fill in every default.

    Args:
        submitted: the spec as the user wrote it; it is not changed.
        unread: paths of what the user wrote and is not in the spec, since it does not fit; nothing is said of them.

    Returns:
        A new spec that says everything, and what is wrong with it.
    """
    spec = JobSpec()
    spec.CopyFrom(submitted)
    for section in (spec.training, spec.resources, spec.recovery):
        section.SetInParent()
    resolution = Resolution(spec, frozenset(unread))
    doubt_unread(_SECTIONS, resolution)
    for choice in CHOICE_RULES:
        apply_choice(choice, resolution)
    apply_fields(_SECTIONS, COMPUTED_DEFAULTS, resolution)
    for cross in SPEC_RULES:
        apply_cross(cross, resolution)
    return resolution


def fill_in_defaults(spec: JobSpec) -> JobSpec:
    """Complete a spec that an earlier version has resolved, which knew fewer fields."""
    complete = JobSpec()
    complete.CopyFrom(spec)
    fill_in(_SECTIONS, COMPUTED_DEFAULTS, complete)
    return complete
