"""Small real data sets that are bundled with scikit-learn."""

from typing import Any

import numpy as np
import torch

from lockstep.v1.job_spec_pb2 import BuiltinData
from lockstep.workers.datasets.registry import builds
from lockstep.workers.engine import DataModule, Examples

DIGITS_WHITE = 16.0
"""The largest value of a pixel in the digits."""


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
        from sklearn import datasets  # takes a second to import

        bunch = getattr(datasets, f"load_{self.name}")()
        self._preprocessing = {}
        held_out = min(max(round(len(bunch.data) * self.validation_fraction), 1), len(bunch.data) - 1)
        order = np.random.Generator(np.random.PCG64(self.seed)).permutation(len(bunch.data))
        validation, train = order[:held_out], order[held_out:]
        if self.name == "digits":
            self._preprocessing = {"inputs": {"divide_by": DIGITS_WHITE}}
            inputs = bunch.images[:, None] / DIGITS_WHITE
        else:
            inputs = self._standardise("inputs", bunch.data, train)
        if self.name == "diabetes":
            targets = torch.from_numpy(self._standardise("targets", bunch.target[:, None], train)).float()
        else:
            targets = torch.from_numpy(bunch.target.astype(np.int64))
            self.num_classes = len(bunch.target_names)
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


@builds("builtin")
def build(spec: BuiltinData) -> DataModule:
    return BuiltinDataset(spec.name, spec.validation_fraction, spec.seed)
