"""Stochastic gradient descent (D2L chapter 12)."""

import torch
from torch import nn

from lockstep.v1.job_spec_pb2 import SgdOptimizer
from lockstep.workers.optimizers.registry import builds


@builds("sgd")
def build(spec: SgdOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        foreach=False,
    )
