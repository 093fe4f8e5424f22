"""Jobs for tests of what one job leaves to the next: ordinary ones, and one that changes everything."""

import contextlib
import gc
import logging
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Classifier, DataModule, Examples, Listener, Point, Progress, Trainer
from lockstep.workers.training import train

Curve = tuple[str, list[Point]]


class Pictures(DataModule):
    """Random pictures of three classes."""

    num_classes = 3

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(40, 3, 16, 16, generator=generator)
        targets = torch.randint(3, (40,), generator=generator)
        self.train, self.validation = Examples(inputs[8:], targets[8:]), Examples(inputs[:8], targets[:8])


class Picky(Classifier):
    """A model whose bits depend on much: on how convolutions are computed, the generator, the dtype, the device."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(2304, 3))
        self.register_buffer("drawn", torch.rand(4))  # nobody has seeded the generator

    def forward(self, inputs: Tensor) -> Tensor:
        tiny = torch.tensor(1e-39) * torch.ones(3)  # a denormal number
        return self.net(inputs) * torch.tensor(1 / 3).to(torch.float32) + tiny * 1e38


class Vandal(Picky):
    """A model that changes everything that it can while it trains."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        if not self.training:
            change_everything()
        return outputs


class Recorder(Listener):
    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


def change_everything() -> None:
    """Change what a job might change, without saying so."""
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.autograd.set_detect_anomaly(True)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv.fp32_precision = "bf16"  # type: ignore[attr-defined]
    for generator_is_moved in (torch.manual_seed, random.seed, np.random.seed):
        generator_is_moved(4)
    nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 1.5)
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: optimizer.param_groups[0].update(lr=5.0))
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = os.environ["NEW"] = "changed"
    os.environ.pop("PATH", None)
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    os.chdir("/")
    os.umask(0o777)
    sys.path.clear()
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    logging.root.setLevel(logging.CRITICAL)
    logging.root.addHandler(logging.NullHandler())
    gc.disable()
    sys.stdout = sys.stderr
    sys.excepthook = threading.excepthook = print
    sys.setrecursionlimit(10_000)
    threading.setprofile(lambda *_: None)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)


def in_a_thread(job: Callable[[], Any]) -> Any:
    """What a job returns that runs in a thread of its own, as all jobs of a worker do."""
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(job()))
    thread.start()
    thread.join()
    return outcomes[0]


def curves_of_jobs() -> list[Curve]:
    """Train two ordinary jobs."""
    picky, listed = Recorder(), Recorder()
    trainer = Trainer(max_epochs=2, batch_size=8, shards=2, log_every_steps=1, threads=2)
    result = trainer.fit(Picky(), Pictures(), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), listener=picky)
    spec = JobSpec()
    spec.model.mlp.hidden_units.append(8)
    spec.model.mlp.activation = "relu"
    spec.model.mlp.dropout.append(0.5)
    spec.data.synthetic_regression.w.extend([1.0, -2.0])
    spec.data.synthetic_regression.train_size = spec.data.synthetic_regression.validation_size = 20
    spec.optimizer.sgd.learning_rate = 0.1
    spec.training.max_steps, spec.training.batch_size, spec.training.log_every_steps = 8, 4, 1
    spec.resources.shards, spec.resources.cpus_per_worker = 2, 1
    return [(result.weights_digest, picky.points), (train(spec, listener=listed).weights_digest, listed.points)]


def vandalise() -> None:
    """Train a job that changes everything, and fails of that."""
    trainer = Trainer(max_epochs=1, batch_size=8, shards=2, log_every_steps=1)
    with contextlib.suppress(Exception):
        trainer.fit(Vandal(), Pictures(), lambda p: torch.optim.SGD(p, lr=0.05))
    assert torch.tensor(0.0).is_meta, "it has done its worst"
