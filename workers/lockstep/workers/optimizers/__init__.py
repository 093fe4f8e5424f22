"""The optimizers that a spec can name, each family in a file of its own that registers it."""

import torch
from torch import nn

from lockstep.v1.job_spec_pb2 import OptimizerSpec
from lockstep.workers.optimizers.registry import builds
from lockstep.workers.registry import import_all_of

__all__ = ["build_optimizer", "builds"]

import_all_of(__name__)


def build_optimizer(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a resolved spec over `parameters`.

    Raises:
        ValueError: nobody builds this kind here.
    """
    builder, kind = builds.builder_of(spec)
    return builder(kind, parameters)
