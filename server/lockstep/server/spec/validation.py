"""The rules of a spec, as one table: what each field may be, what it is by default, and how fields fit together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from lockstep.contract.bounds import MOST_CPUS_PER_WORKER, MOST_EPOCHS, MOST_SHARDS, MOST_STEPS
from lockstep.contract.wording import count
from lockstep.server.errors import InvalidSpec
from lockstep.server.spec.checkpoint_rules import FOLDER_HINT, FOLDER_LIMITS, RECOVERY_CROSS_RULES, is_folder
from lockstep.server.spec.dataset_rules import DATASET_CROSS_RULES
from lockstep.server.spec.rules import (
    ChoiceRule,
    CrossRule,
    Default,
    FieldRule,
    Resolution,
    Shown,
    Site,
    absolute,
    apply_choice,
    apply_cross,
    apply_fields,
    fill_in,
    has_controls,
    is_path,
    sections_of,
)
from lockstep.server.spec.size_rules import SIZE_CROSS_RULES
from lockstep.v1.job_spec_pb2 import JobSpec

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9_./-]{1,63}")
_ACTIVATIONS = ("relu", "sigmoid", "tanh")
_POOLINGS = ("avg", "max")
_AUDITS = ("start", "always")
MAX_LABELS = 64
BUILTIN_NAMES = ("digits", "iris", "wine", "breast_cancer", "diabetes")


def _within(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: least <= value <= most


def _one_of(words: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: value in words


def _quoted(words: tuple[str, ...]) -> str:
    return "one of " + ", ".join(f'"{word}"' for word in words)


def _above_0(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _fraction_from_0(value: float) -> bool:
    return 0 <= value < 1


def _is_label(item: tuple[str, str]) -> bool:
    key, value = item
    return _LABEL_KEY.fullmatch(key) is not None and len(value) <= 255 and not has_controls(value)


def _is_job_id(value: str) -> bool:
    return len(value) <= 64 and not has_controls(value)


def _default_name(spec: JobSpec) -> Any:
    kind = spec.model.WhichOneof("kind")
    return Default.UNSET if kind is None else kind.replace("_", "-")


def _default_max_epochs(spec: JobSpec) -> Any:
    return Default.UNSET if spec.training.HasField("max_steps") else 10


def _default_shards(spec: JobSpec) -> int:
    workers, batch_size = spec.resources.workers, spec.training.batch_size
    wanted = 4 if workers <= 4 else 1 << (workers - 1).bit_length()
    return max(1, min(wanted, batch_size, MOST_SHARDS))


CHOICE_RULES = (ChoiceRule("model"), ChoiceRule("data"), ChoiceRule("optimizer"))

_SEED_LIMITS = "0 to 4,294,967,295"
_MILLION = 1_000_000

# In the order in which defaults depend on each other. One row a field; rows stay on few lines to read as a table.
# fmt: off
FIELD_RULES: tuple[FieldRule, ...] = (
    FieldRule("name", "string",
              '1 to 63 lower-case letters, digits and "-", the first and the last no "-"',
              "choose a name such as mnist-lenet-2",
              _default_name, lambda value: _NAME.fullmatch(value) is not None),
    FieldRule("labels", "map of strings",
              f'at most {MAX_LABELS} labels; keys of 1 to 63 letters, digits, "-", "_", "." and "/", values of at most '
              "255 characters without control characters",
              "change or remove the label",
              allows=_is_label, counts=(0, MAX_LABELS)),

    FieldRule("model.mlp.hidden_units", "list of integers",
              "1 to 64 layers of 1 to 65,536 units", "give the width of each hidden layer, such as [256, 128]",
              [256], _within(1, 65_536), (1, 64)),
    FieldRule("model.mlp.activation", "string",
              _quoted(_ACTIVATIONS), "choose one of them", "relu", _one_of(_ACTIVATIONS)),
    FieldRule("model.mlp.dropout", "list of numbers",
              "empty, or one probability in [0, 1) per hidden layer",
              "give the share of units to drop, such as 0.5",
              [], _fraction_from_0, (0, 64)),
    FieldRule("model.lenet.activation", "string",
              _quoted(_ACTIVATIONS), "choose one of them", "sigmoid", _one_of(_ACTIVATIONS)),
    FieldRule("model.lenet.pooling", "string",
              _quoted(_POOLINGS), "choose one of them", "avg", _one_of(_POOLINGS)),

    FieldRule("data.synthetic_regression.w", "list of numbers",
              "1 to 10,000 numbers from -1,000,000 to 1,000,000",
              "give the true weight of each feature, such as [2, -3.4]",
              Default.REQUIRED, _within(-_MILLION, _MILLION), (1, 10_000)),
    FieldRule("data.synthetic_regression.b", "number",
              "-1,000,000 to 1,000,000", "give the true bias, such as 4.2", 0.0, _within(-_MILLION, _MILLION)),
    FieldRule("data.synthetic_regression.noise", "number",
              "0 to 1,000,000", "set it to the standard deviation of the noise, such as 0.01",
              0.01, _within(0, _MILLION)),
    FieldRule("data.synthetic_regression.train_size", "integer",
              "1 to 10,000,000", "set it to how many training examples to draw", 1000, _within(1, 10_000_000)),
    FieldRule("data.synthetic_regression.validation_size", "integer",
              "1 to 10,000,000", "set it to how many validation examples to draw", 1000, _within(1, 10_000_000)),
    FieldRule("data.synthetic_regression.seed", "integer", _SEED_LIMITS, "choose another seed", 0),
    FieldRule("data.builtin.name", "string",
              _quoted(BUILTIN_NAMES), "choose one of them", Default.REQUIRED, _one_of(BUILTIN_NAMES)),
    FieldRule("data.builtin.validation_fraction", "number",
              "greater than 0 and less than 1", "set it to the share held out for validation, such as 0.2",
              0.2, lambda value: 0 < value < 1),
    FieldRule("data.builtin.seed", "integer", _SEED_LIMITS, "choose another seed", 0),
    FieldRule("data.idx.root", "string",
              "a path of at most 4,096 characters without control characters",
              "set it to the folder that holds the four IDX files, as the workers see it",
              Default.REQUIRED, is_path, normal=absolute),
    FieldRule("data.idx.standardize", "boolean",
              "true or false", "set it to true for pixels of mean 0 and deviation 1", False),

    FieldRule("optimizer.sgd.learning_rate", "number",
              "greater than 0, at most 1,000", "set it to a step size such as 0.1",
              Default.REQUIRED, lambda value: 0 < value <= 1000),
    FieldRule("optimizer.sgd.momentum", "number",
              "0 or greater, less than 1", "set it to 0 for none, or to a number such as 0.9", 0.0, _fraction_from_0),
    FieldRule("optimizer.sgd.weight_decay", "number",
              "0 to 1,000", "set it to 0 for none, or to a small number such as 0.0005", 0.0, _within(0, 1000)),

    FieldRule("training.max_steps", "integer",
              "1 to 1,000,000,000", "set it to how many steps to take, or leave it out",
              Default.UNSET, _within(1, MOST_STEPS)),
    FieldRule("training.max_epochs", "integer",
              "1 to 1,000,000", "set it to how often to pass over the data",
              _default_max_epochs, _within(1, MOST_EPOCHS)),
    FieldRule("training.batch_size", "integer",
              "1 to 1,000,000", "set it to how many examples one step takes", 32, _within(1, 1_000_000)),
    FieldRule("training.seed", "integer", _SEED_LIMITS, "choose another seed", 0),
    FieldRule("training.gradient_clip_norm", "number",
              "greater than 0, and finite", "set it to the longest gradient norm that you want, or leave it out",
              Default.UNSET, _above_0),
    FieldRule("training.log_every_steps", "integer",
              "1 to 1,000,000,000", "set it to the steps between two points", 50, _within(1, MOST_STEPS)),
    FieldRule("training.evaluate_every_steps", "integer",
              "1 to 1,000,000,000", "set it to the steps between two validations, or leave it out for each epoch",
              Default.UNSET, _within(1, MOST_STEPS)),
    FieldRule("training.audit", "string",
              _quoted(_AUDITS), "choose one of them", "start", _one_of(_AUDITS)),

    FieldRule("resources.workers", "integer",
              "1 to 1,024", "set it to how many workers share the work", 1, _within(1, MOST_SHARDS)),
    FieldRule("resources.shards", "integer",
              "1 to 1,024", "set it to the number of workers or more, or leave it out",
              _default_shards, _within(1, MOST_SHARDS)),
    FieldRule("resources.cpus_per_worker", "number",
              "0.0001 to 1,024", "set it to the CPUs of one worker, such as 1 or 0.5",
              1.0, _within(0.0001, MOST_CPUS_PER_WORKER)),
    FieldRule("resources.gpus_per_worker", "integer",
              "0 or 1", "set it to 1 for a GPU per worker, or to 0 for none", 0, _within(0, 1)),
    FieldRule("resources.min_workers", "integer",
              "1 to 1,024", "set it to the fewest workers that the job may run with", 1, _within(1, MOST_SHARDS)),

    FieldRule("recovery.max_restarts", "integer",
              "0 to 1,000", "set it to how often the job may start again", 3, _within(0, 1000)),
    FieldRule("recovery.checkpoint_every_steps", "integer",
              "1 to 1,000,000,000", "set it to the steps between two checkpoints", 1000, _within(1, MOST_STEPS)),
    FieldRule("recovery.keep_checkpoints", "integer",
              "2 to 1,000", "set it to how many of the newest checkpoints to keep", 2, _within(2, 1000)),
    FieldRule("recovery.checkpoint_uri", "string", FOLDER_LIMITS, FOLDER_HINT, allows=is_folder),
    FieldRule("recovery.hang_timeout_s", "number",
              "1 to 86,400", "set it to the seconds without a finished shard after which a worker counts as hung",
              30.0, _within(1, 86_400)),

    FieldRule("init_from.job_id", "string",
              "the job_id of a job of this server", "give the whole id, as `lockstep ls` shows it", allows=_is_job_id),
    FieldRule("init_from.step", "integer",
              "0 or greater", "set it to the step of a checkpoint, or leave it out for the newest",
              allows=lambda value: value >= 0),
    FieldRule("init_from.uri", "string", FOLDER_LIMITS, FOLDER_HINT, allows=is_folder),
)
# fmt: on
_SECTIONS = sections_of(FIELD_RULES)


def _shards_below_workers(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if spec.resources.workers <= spec.resources.shards:
        return None
    return f"{shown('resources.workers')}; allowed: at most resources.shards, and {shown('resources.shards')}"


def _batch_below_shards(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if spec.training.batch_size >= spec.resources.shards:
        return None
    return f"{shown('training.batch_size')}; allowed: at least resources.shards, and {shown('resources.shards')}"


def _epochs_and_steps(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not (spec.training.HasField("max_epochs") and spec.training.HasField("max_steps")):
        return None
    return f"{shown('training.max_epochs')} and {shown('training.max_steps')}; allowed: one of the two"


def _nesterov_without_momentum(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if not spec.optimizer.sgd.nesterov or spec.optimizer.sgd.momentum > 0:
        return None
    return f"{shown('optimizer.sgd.nesterov')} and {shown('optimizer.sgd.momentum')}; allowed: only with momentum > 0"


def _dropout_per_layer(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    layers, given = len(spec.model.mlp.hidden_units), len(spec.model.mlp.dropout)
    if given in (0, layers):
        return None
    return (
        f"model.mlp.dropout has {count(given, 'item')}; "
        f"allowed: none, or one per hidden layer, and model.mlp.hidden_units has {layers}"
    )


CROSS_RULES: tuple[CrossRule, ...] = (
    CrossRule(
        "resources.workers",
        ("resources.workers", "resources.shards", "training.batch_size"),
        "at most resources.shards",
        "ask for fewer workers, or for more shards (no more than training.batch_size)",
        _shards_below_workers,
    ),
    CrossRule(
        "training.batch_size",
        ("resources.shards", "training.batch_size"),
        "at least resources.shards",
        "take larger batches, or fewer shards and workers",
        _batch_below_shards,
    ),
    CrossRule(
        "training.max_epochs",
        ("training.max_epochs", "training.max_steps"),
        "not together with training.max_steps",
        "remove one of them",
        _epochs_and_steps,
    ),
    CrossRule(
        "optimizer.sgd.nesterov",
        ("optimizer.sgd.momentum",),
        "only with optimizer.sgd.momentum > 0",
        "set optimizer.sgd.momentum, such as 0.9, or nesterov to false",
        _nesterov_without_momentum,
    ),
    CrossRule(
        "model.mlp.dropout",
        ("model.mlp.dropout", "model.mlp.hidden_units"),
        "none, or one per hidden layer",
        "give one probability per hidden layer",
        _dropout_per_layer,
    ),
    *DATASET_CROSS_RULES,
    *RECOVERY_CROSS_RULES,
    *SIZE_CROSS_RULES,
)


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
    spec = JobSpec()
    spec.CopyFrom(submitted)
    for section in (spec.training, spec.resources, spec.recovery):
        section.SetInParent()
    resolution = Resolution(spec, site)
    for choice in CHOICE_RULES:
        apply_choice(choice, resolution)
    apply_fields(_SECTIONS, resolution)
    for cross in CROSS_RULES:
        apply_cross(cross, resolution)
    if resolution.violations:
        raise InvalidSpec(resolution.violations)
    return spec


def fill_in_defaults(spec: JobSpec) -> JobSpec:
    """Complete a spec that an earlier version has resolved, which knew fewer fields."""
    complete = JobSpec()
    complete.CopyFrom(spec)
    fill_in(_SECTIONS, complete)
    return complete
