"""Small real data sets that are bundled with scikit-learn."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lockstep.v1.job_spec_pb2 import BuiltinData
from lockstep.workers.datasets.registry import builds
from lockstep.workers.engine import DataModule, Examples

DIGITS_WHITE = 16.0
"""The largest value of a pixel in the digits."""
FILES = {
    "digits": "digits.csv.gz",
    "iris": "iris.csv",
    "wine": "wine_data.csv",
    "breast_cancer": "breast_cancer.csv",
}
"""Tables whose last column is the target; but for the digits, the first line tells their size and classes."""


class BuiltinDataset(DataModule):
    """One of scikit-learn's data sets, split at random into a training and a validation part.

    Args:
        name: "digits", "iris", "wine", "breast_cancer" (classes) or "diabetes" (numbers).
        validation_fraction: share of the examples held out, in (0, 1).
        seed: seed of the split.
    """

    field = "data.builtin"

    def __init__(self, name: str, validation_fraction: float, seed: int) -> None:
        self.name, self.validation_fraction, self.seed = name, validation_fraction, seed
        self._preprocessing: dict[str, Any] = {}

    def load(self) -> None:
        """Load, split and scale the examples."""
        table, column = read(self.name)
        self._preprocessing = {}
        held_out = min(max(round(len(table) * self.validation_fraction), 1), len(table) - 1)
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(len(table))
        validation, train = order[:held_out], order[held_out:]
        if self.name == "digits":
            self._preprocessing = {"inputs": {"divide_by": DIGITS_WHITE}}
            inputs = table.reshape(-1, 1, 8, 8) / DIGITS_WHITE
        else:
            inputs = self._standardise("inputs", table, train)
        if self.name == "diabetes":
            targets = torch.from_numpy(self._standardise("targets", column[:, None], train)).float()
        else:
            targets = torch.from_numpy(column.astype(np.int64))
            self.num_classes = len(np.unique(column))
        examples = Examples(torch.from_numpy(inputs).float(), targets)
        self.train, self.validation = (
            Examples(*(t[torch.from_numpy(i)] for t in examples)) for i in (train, validation)
        )

    def preprocessing(self) -> dict[str, Any]:
        """Images are divided by their largest value; columns of tables are standardised."""
        return self._preprocessing

    def _standardise(self, what: str, columns: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Shift and scale columns, (n, columns), to mean 0 and deviation 1 over the training part."""
        mean, deviation = columns[train].mean(axis=0), columns[train].std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1)
        self._preprocessing[what] = {"mean": mean.tolist(), "std": deviation.tolist()}
        scaled: np.ndarray = (columns - mean) / deviation
        return scaled


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, (n, columns), and targets, (n,), of a data set.

    From scikit-learn's file, where that is all there is to it: the import of scikit-learn takes a second.
    """
    if name in FILES:
        package = find_spec("sklearn")
        assert package is not None and package.origin is not None
        path = Path(package.origin).parent / "datasets" / "data" / FILES[name]
        if path.exists():
            table = np.loadtxt(path, delimiter=",", skiprows=0 if name == "digits" else 1)
            return table[:, :-1], table[:, -1]
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return bunch.data, bunch.target


@builds("builtin")
def build(spec: BuiltinData) -> DataModule:
    return BuiltinDataset(spec.name, spec.validation_fraction, spec.seed)
