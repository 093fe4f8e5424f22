"""From a resolved spec to a training run."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator

import torch
from google.protobuf import json_format

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.datasets import DataCache, build_data
from lockstep.workers.engine import Activity, EngineError, Group, Ledger, Listener, Origin, Regroup, Result, Trainer
from lockstep.workers.engine.devices import bound_memory, check_usable
from lockstep.workers.models import build_model
from lockstep.workers.optimizers import build_optimizer

log = logging.getLogger("lockstep")


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
        audit=training.audit or "start",  # the specs of jobs from before there was one do not say
        precision=training.precision or "fp32",
        memory_format=training.memory_format or "contiguous",
    )


def fields_of(spec: JobSpec) -> dict[str, str]:
    """Where a spec says what the engine calls otherwise in its messages."""
    return {
        "batch_size": "training.batch_size",
        "gradient_clip_norm": "training.gradient_clip_norm",
        "learning_rate": f"optimizer.{spec.optimizer.WhichOneof('kind')}.learning_rate",
        "device": "resources.gpus_per_worker: 0",
        "checkpoints": "recovery.checkpoint_uri",
        "init_from_uri": "init_from",
    }


def device_of(spec: JobSpec) -> torch.device:
    """Where a rank of this spec computes on this machine: Ray shows it one GPU, torchrun all of them.

    Where torchrun starts more ranks than there are GPUs, they share.
    """
    if not spec.resources.gpus_per_worker:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))


def check_device(spec: JobSpec) -> None:
    """Check that PyTorch computes where a rank of this spec would, before anything is done there.

    Raises:
        DeviceUnusable: it does not.
    """
    with named_as_in(spec):
        check_usable(device_of(spec))


SMALLEST = {
    "model": {"mlp": {"hidden_units": [2], "activation": "relu", "dropout": [0.5]}},
    "data": {"synthetic_regression": {"w": [1.0], "train_size": 2, "validation_size": 1}},
    "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
    "training": {"max_steps": 2, "batch_size": 2, "log_every_steps": 1},
    "resources": {"shards": 2, "cpus_per_worker": 1.0},
}
"""A job that goes through everything that takes long in a process the first time."""


def train_once(gpus: float) -> None:
    """Train as little as can be, so that the first job finds everything imported and set up.

    Args:
        gpus: that this process holds; less than 1 for a share of one.
    """
    spec = json_format.ParseDict(SMALLEST, JobSpec())
    spec.resources.gpus_per_worker, spec.resources.gpu_share = math.ceil(gpus), min(gpus, 1.0)
    train(spec)


def train(
    spec: JobSpec,
    group: Group | None = None,
    listener: Listener | None = None,
    *,
    regroup: Regroup | None = None,
    origin: Origin | None = None,
    cache: DataCache | None = None,
    ledger: Ledger | None = None,
) -> Result:
    """Run a resolved spec as one rank of `group`, or alone, with data from the cache if it is there.

    The other arguments are those of `Trainer.fit`.

    Raises:
        EngineError: see `Trainer.fit`; it names fields of the spec.
    """
    with named_as_in(spec):
        trainer, device = build_trainer(spec), device_of(spec)
        if listener is not None:
            listener.entered(Activity.LOAD, 0)
        bound_memory(device, spec.resources.gpu_share or 1.0)
        began_at = time.monotonic()
        data = build_data(spec.data, device, cache)
        if listener is not None:
            listener.has_data(data.digest())
        sizes = (len(data.train), len(data.validation))
        log.info("read %d training and %d validation examples in %.2f s", *sizes, time.monotonic() - began_at)
        return trainer.fit(
            build_model(spec.model, data, spec.training.seed),
            data,
            lambda parameters: build_optimizer(spec.optimizer, parameters),
            group=group,
            regroup=regroup,
            device=device,
            listener=listener,
            origin=origin,
            ledger=ledger,
        )


@contextlib.contextmanager
def named_as_in(spec: JobSpec) -> Iterator[None]:
    """Have errors of the engine name the fields of a spec."""
    try:
        yield
    except EngineError as error:
        error.rename(fields_of(spec))
        raise
