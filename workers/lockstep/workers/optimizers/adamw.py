"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019; D2L section 12.10 has Adam)."""

import torch
from torch import nn

from lockstep.v1.job_spec_pb2 import AdamwOptimizer
from lockstep.workers.optimizers.registry import builds


@builds("adamw")
def build(spec: AdamwOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        foreach=False,
    )
