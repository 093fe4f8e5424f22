"""The models that a spec can name, each in a file of its own that registers it."""

import torch

from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.engine import DataModule, Module, initialisation_seed
from lockstep.workers.models.registry import builds
from lockstep.workers.registry import import_all_of

__all__ = ["build_model", "builds"]

import_all_of(__name__)


def build_model(spec: ModelSpec, data: DataModule, seed: int) -> Module:
    """The model of a resolved spec, shaped for `data`, with initial weights drawn from `seed`.

    Raises:
        DataError: the model cannot be trained on this data.
        ValueError: nobody builds this kind here.
    """
    builder, kind = builds.builder_of(spec)
    torch.default_generator.manual_seed(initialisation_seed(seed))
    return builder(kind, data)
