"""How large a job may be, as far as its spec tells: weights of its model, points of its curve."""

from __future__ import annotations

import math
from itertools import pairwise

from lockstep.server.spec.dataset_rules import BUILTINS, train_size
from lockstep.server.spec.idx_header import training_images
from lockstep.server.spec.rules import CrossRule, Shown, Site
from lockstep.v1.job_spec_pb2 import JobSpec

MOST_WEIGHTS = 1_000_000_000
METRICS_PER_POINT = 6
"""train_loss, train_accuracy, grad_norm, learning_rate, samples_per_second and step_seconds."""
METRICS_PER_VALIDATION = 2


def _inputs(spec: JobSpec, site: Site) -> int:
    """Count the inputs of a model as far as the data is known; 1 where only the workers can know."""
    match spec.data.WhichOneof("kind"):
        case "synthetic_regression":
            return len(spec.data.synthetic_regression.w)
        case "builtin":
            return BUILTINS[spec.data.builtin.name].inputs
        case "idx":
            images = training_images(spec, site)
            return max(1, images.height * images.width) if images is not None else 1
        case _:
            return 1


def _batch_above_images(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    images = training_images(spec, site)
    if images is None or not images.number or spec.training.batch_size <= images.number:
        return None
    return f"{shown('training.batch_size')}; allowed: at most {images.number:,}, the number of training examples"


def _outputs(spec: JobSpec) -> int:
    return BUILTINS[spec.data.builtin.name].outputs if spec.data.HasField("builtin") else 1


def _too_many_weights(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not spec.model.HasField("mlp"):
        return None
    widths = [_inputs(spec, site), *spec.model.mlp.hidden_units, _outputs(spec)]
    weights = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    if weights <= MOST_WEIGHTS:
        return None
    return (
        f"model.mlp.hidden_units makes {weights:,} weights, with {widths[0]:,} inputs; "
        f"allowed: at most {MOST_WEIGHTS:,}"
    )


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

_OF_EACH_DATA = tuple(
    rule
    for data in _DATA
    for rule in (
        CrossRule(
            "model.mlp.hidden_units",
            ("model.mlp.hidden_units", *data),
            "at most 1,000,000,000 weights, those of the inputs among them",
            "make the layers narrower or fewer",
            _too_many_weights,
        ),
        CrossRule(
            "training.log_every_steps",
            (*_TRAINING, *data),
            "no more points in all than the server takes of a job",
            "log and validate less often, or take fewer steps",
            _too_many_points,
        ),
    )
)

SIZE_CROSS_RULES: tuple[CrossRule, ...] = (
    *_OF_EACH_DATA,
    CrossRule(
        "training.batch_size",
        ("training.batch_size", "data.idx.root"),
        "at most the number of training examples",
        "take a smaller batch",
        _batch_above_images,
    ),
)
