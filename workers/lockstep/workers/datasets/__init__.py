"""The data sets that a spec can name."""

from lockstep.v1.job_spec_pb2 import DataSpec
from lockstep.workers.datasets.builtin import BuiltinDataset
from lockstep.workers.datasets.idx import IdxDataset
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import DataModule

__all__ = ["build_data"]


def build_data(spec: DataSpec) -> DataModule:
    """The data of a resolved spec, loaded.

    Raises:
        DataError: it cannot be had, or is not what the spec says.
    """
    data: DataModule
    match spec.WhichOneof("kind"):
        case "synthetic_regression":
            synthetic = spec.synthetic_regression
            data = SyntheticRegression(
                tuple(synthetic.w),
                synthetic.b,
                synthetic.noise,
                train_size=synthetic.train_size,
                validation_size=synthetic.validation_size,
                seed=synthetic.seed,
            )
        case "builtin":
            data = BuiltinDataset(spec.builtin.name, spec.builtin.validation_fraction, spec.builtin.seed)
        case "idx":
            data = IdxDataset(spec.idx.root, spec.idx.standardize)
        case unknown:
            raise ValueError(f"unknown data {unknown}")
    data.load()
    return data
