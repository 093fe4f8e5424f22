"""The data sets that a spec can name."""

import torch

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.datasets.builtin import BuiltinDataset
from lockstep.workers.datasets.cache import DataCache
from lockstep.workers.datasets.idx import IdxDataset
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import DataModule

__all__ = ["DataCache", "build_data", "data_of"]

CPU = torch.device("cpu")


def build_data(spec: DataSpec, device: torch.device = CPU, cache: DataCache | None = None) -> DataModule:
    """The data of a resolved spec, loaded, on `device`; from the cache if it is there.

    Raises:
        DataError: it cannot be had, or is not what the spec says.
    """
    data = data_of(spec)
    name = DataSpec()
    name.CopyFrom(spec)
    if name.HasField("idx"):
        name.idx.root = ""  # wherever the files lie
    return (cache or DataCache(0)).get(name.SerializeToString(deterministic=True), device, data)


def data_of(spec: DataSpec) -> DataModule:
    """The data of a resolved spec, not loaded yet."""
    match spec.WhichOneof("kind"):
        case "synthetic_regression":
            synthetic = spec.synthetic_regression
            return SyntheticRegression(
                tuple(synthetic.w),
                synthetic.b,
                synthetic.noise,
                train_size=synthetic.train_size,
                validation_size=synthetic.validation_size,
                seed=synthetic.seed,
            )
        case "builtin":
            return BuiltinDataset(spec.builtin.name, spec.builtin.validation_fraction, spec.builtin.seed)
        case "idx":
            return IdxDataset(spec.idx.root, spec.idx.standardize)
        case unknown:
            raise ValueError(f"unknown data {unknown}")
