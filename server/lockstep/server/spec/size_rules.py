"""How large a job may be, as far as its spec tells: weights of its model, points of its curve."""

from __future__ import annotations

import math

from lockstep.contract.spec.builtin import train_size
from lockstep.contract.spec.cross_field_data import WEIGHTS_HINT, WEIGHTS_LIMITS, too_many_weights
from lockstep.contract.spec.traversal import Shown
from lockstep.server.spec.idx_header import training_images
from lockstep.server.spec.rules import Site, SiteRule
from lockstep.v1.job_spec_pb2 import JobSpec

METRICS_PER_POINT = 6
"""train_loss, train_accuracy, grad_norm, learning_rate, samples_per_second and step_seconds."""
METRICS_PER_VALIDATION = 2


def _too_many_weights(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    images = training_images(spec, site)
    return too_many_weights(spec, max(1, images.height * images.width) if images is not None else 1)


def _batch_above_images(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    images = training_images(spec, site)
    if images is None or not images.number or spec.training.batch_size <= images.number:
        return None
    return f"{shown('training.batch_size')}; allowed: at most {images.number:,}, the number of training examples"


def steps_of(spec: JobSpec) -> int | None:
    """Count the steps of a resolved spec; None when only the workers can know."""
    if spec.training.HasField("max_steps"):
        return spec.training.max_steps
    size = train_size(spec)
    return None if size is None else spec.training.max_epochs * math.ceil(size / spec.training.batch_size)


def points_of(spec: JobSpec) -> int | None:
    """Count the metric points that a job with a resolved spec makes at most; None when only the workers can know."""
    steps, size = steps_of(spec), train_size(spec)
    if steps is None:
        return None
    validate_every = spec.training.evaluate_every_steps
    if not validate_every and size is not None:
        validate_every = max(1, size // spec.training.batch_size)
    validations = math.ceil(steps / validate_every) if validate_every else 0
    return METRICS_PER_POINT * math.ceil(steps / spec.training.log_every_steps) + METRICS_PER_VALIDATION * validations


def _too_many_points(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    points = points_of(spec)
    if points is None or points <= site.points_per_job:
        return None
    return (
        f"{shown('training.log_every_steps')}, which makes up to {points:,} metric points with those of the "
        f"validations; allowed on this server: at most {site.points_per_job:,} (--points-per-job)"
    )


_TRAINING = tuple(
    f"training.{name}" for name in ("max_steps", "max_epochs", "batch_size", "log_every_steps", "evaluate_every_steps")
)
_DATA = (
    ("data.builtin.name", "data.builtin.validation_fraction"),
    ("data.synthetic_regression.w", "data.synthetic_regression.train_size"),
    ("data.idx.root",),
)

SIZE_RULES: tuple[SiteRule, ...] = (
    SiteRule(
        "model.mlp.hidden_units",
        ("model.mlp.hidden_units", "data.idx.root"),
        WEIGHTS_LIMITS,
        WEIGHTS_HINT,
        _too_many_weights,
    ),
    *(
        SiteRule(
            "training.log_every_steps",
            (*_TRAINING, *data),
            "no more points in all than the server takes of a job",
            "log and validate less often, or take fewer steps",
            _too_many_points,
        )
        for data in _DATA
    ),
    SiteRule(
        "training.batch_size",
        ("training.batch_size", "data.idx.root"),
        "at most the number of training examples",
        "take a smaller batch",
        _batch_above_images,
    ),
)
