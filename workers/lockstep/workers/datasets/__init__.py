"""The data sets that a spec can name, each in a file of its own that registers it."""

import torch

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.datasets.cache import DataCache
from lockstep.workers.datasets.registry import builds
from lockstep.workers.engine import DataModule
from lockstep.workers.registry import import_all_of

__all__ = ["DataCache", "build_data", "builds", "data_of"]

CPU = torch.device("cpu")

import_all_of(__name__)


def build_data(spec: DataSpec, device: torch.device = CPU, cache: DataCache | None = None) -> DataModule:
    """The data of a resolved spec, loaded, on `device`; from the cache if it is there.

    Raises:
        DataError: it cannot be had, or is not what the spec says.
        ValueError: nobody builds this kind here.
    """
    data = data_of(spec)
    return (cache or DataCache(0)).get(builds.name_of(spec), device, data)


def data_of(spec: DataSpec) -> DataModule:
    """The data of a resolved spec, not loaded yet.

    Raises:
        ValueError: nobody builds this kind here.
    """
    builder, kind = builds.builder_of(spec)
    return builder(kind)
