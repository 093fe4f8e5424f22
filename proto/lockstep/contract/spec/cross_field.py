"""Rules over several fields that a spec alone can break: its loop, workers, weights to start from, its model."""

from __future__ import annotations

from lockstep.contract.spec.traversal import CrossRule, Shown
from lockstep.contract.wording import count
from lockstep.v1.job_spec_pb2 import JobSpec


def _shards_below_workers(spec: JobSpec, shown: Shown) -> str | None:
    if spec.resources.workers <= spec.resources.shards:
        return None
    return f"{shown('resources.workers')}; allowed: at most resources.shards, and {shown('resources.shards')}"


def _batch_below_shards(spec: JobSpec, shown: Shown) -> str | None:
    if spec.training.batch_size >= spec.resources.shards:
        return None
    return f"{shown('training.batch_size')}; allowed: at least resources.shards, and {shown('resources.shards')}"


def _epochs_and_steps(spec: JobSpec, shown: Shown) -> str | None:
    if not (spec.training.HasField("max_epochs") and spec.training.HasField("max_steps")):
        return None
    return f"{shown('training.max_epochs')} and {shown('training.max_steps')}; allowed: one of the two"


def _nesterov_without_momentum(spec: JobSpec, shown: Shown) -> str | None:
    if not spec.optimizer.sgd.nesterov or spec.optimizer.sgd.momentum > 0:
        return None
    return f"{shown('optimizer.sgd.nesterov')} and {shown('optimizer.sgd.momentum')}; allowed: only with momentum > 0"


def _dropout_per_layer(spec: JobSpec, shown: Shown) -> str | None:
    layers, given = len(spec.model.mlp.hidden_units), len(spec.model.mlp.dropout)
    if given in (0, layers):
        return None
    return (
        f"model.mlp.dropout has {count(given, 'item')}; "
        f"allowed: none, or one per hidden layer, and model.mlp.hidden_units has {layers}"
    )


def _tf32_without_gpu(spec: JobSpec, shown: Shown) -> str | None:
    if spec.training.precision != "tf32" or spec.resources.gpus_per_worker:
        return None
    return f"{shown('training.precision')} and {shown('resources.gpus_per_worker')}; allowed: tf32 only with GPUs"


def _share_without_gpu(spec: JobSpec, shown: Shown) -> str | None:
    if spec.resources.gpu_share >= 1 or spec.resources.gpus_per_worker:
        return None
    return f"{shown('resources.gpu_share')} and {shown('resources.gpus_per_worker')}; allowed: only with GPUs"


def _fewest_above_workers(spec: JobSpec, shown: Shown) -> str | None:
    if spec.resources.min_workers <= spec.resources.workers:
        return None
    return f"{shown('resources.min_workers')}; allowed: at most resources.workers, and {shown('resources.workers')}"


def _one_source(spec: JobSpec, shown: Shown) -> str | None:
    if not spec.HasField("init_from") or bool(spec.init_from.job_id) != bool(spec.init_from.uri):
        return None
    if spec.init_from.job_id:
        return f"{shown('init_from.job_id')} and {shown('init_from.uri')}; allowed: one of the two"
    return "init_from has neither job_id nor uri; allowed: one of the two"


def _step_without_job(spec: JobSpec, shown: Shown) -> str | None:
    if not spec.init_from.HasField("step") or spec.init_from.job_id:
        return None
    return f"{shown('init_from.step')}; allowed: only with init_from.job_id"


CROSS_RULES: tuple[CrossRule, ...] = (
    CrossRule(
        "resources.workers",
        ("resources.workers", "resources.shards"),
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
        ("optimizer.sgd.nesterov", "optimizer.sgd.momentum"),
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
    CrossRule(
        "training.precision",
        ("training.precision", "resources.gpus_per_worker"),
        "tf32 only with GPUs",
        "set training.precision to fp32 or bf16, or resources.gpus_per_worker to 1",
        _tf32_without_gpu,
    ),
    CrossRule(
        "resources.gpu_share",
        ("resources.gpu_share", "resources.gpus_per_worker"),
        "less than 1 only with GPUs",
        "set resources.gpus_per_worker to 1, or leave gpu_share out",
        _share_without_gpu,
    ),
    CrossRule(
        "resources.min_workers",
        ("resources.min_workers", "resources.workers"),
        "at most resources.workers",
        "lower it, or ask for more workers",
        _fewest_above_workers,
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
