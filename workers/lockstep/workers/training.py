"""From a resolved spec to a training run."""

import os

import torch

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.datasets import build_data
from lockstep.workers.engine import Group, Listener, Origin, Phase, Regroup, Result, Trainer
from lockstep.workers.models import build_model
from lockstep.workers.optimizers import build_optimizer


def build_trainer(spec: JobSpec) -> Trainer:
    """The trainer of a resolved spec."""
    training = spec.training
    return Trainer(
        max_epochs=training.max_epochs if training.HasField("max_epochs") else None,
        max_steps=training.max_steps if training.HasField("max_steps") else None,
        batch_size=training.batch_size,
        shards=spec.resources.shards,
        seed=training.seed,
        gradient_clip_norm=training.gradient_clip_norm if training.HasField("gradient_clip_norm") else None,
        log_every_steps=training.log_every_steps,
        evaluate_every_steps=training.evaluate_every_steps if training.HasField("evaluate_every_steps") else None,
        threads=max(1, int(spec.resources.cpus_per_worker)),
    )


def device_of(spec: JobSpec) -> torch.device:
    """Where a rank of this spec computes on this machine: Ray shows it one GPU, torchrun all of them."""
    if not spec.resources.gpus_per_worker:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def train(
    spec: JobSpec,
    group: Group | None = None,
    listener: Listener | None = None,
    *,
    regroup: Regroup | None = None,
    origin: Origin | None = None,
) -> Result:
    """Run a resolved spec as one rank of `group`, or alone; see `Trainer.fit`.

    Raises:
        EngineError: see `Trainer.fit`.
    """
    trainer = build_trainer(spec)
    if listener is not None:
        listener.entered(Phase.LOAD, 0)
    data = build_data(spec.data)
    return trainer.fit(
        build_model(spec.model, data, spec.training.seed),
        data,
        lambda parameters: build_optimizer(spec.optimizer, parameters),
        group=group,
        regroup=regroup,
        device=device_of(spec),
        listener=listener,
        origin=origin,
    )
