"""The optimizers that a spec can name."""

import torch
from torch import nn

from lockstep.v1.job_spec_pb2 import OptimizerSpec


def build_optimizer(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a resolved spec over `parameters`, with torch's own arithmetic."""
    match spec.WhichOneof("kind"):
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=spec.sgd.learning_rate,
                momentum=spec.sgd.momentum,
                nesterov=spec.sgd.nesterov,
                weight_decay=spec.sgd.weight_decay,
                foreach=False,
            )
        case unknown:
            raise ValueError(f"unknown optimizer {unknown}")
