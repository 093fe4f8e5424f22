"""What is trained on: the base class of data sets."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """Examples that lie in memory as tensors.

    Attributes:
        inputs: (examples, ...).
        targets: class numbers, int64, (examples,), or numbers, float32, (examples, 1).
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device))


class DataModule:
    """A training and a validation set; the base of Lockstep's data sets and of a user's own.

    A subclass sets `train` and `validation`, in its constructor or in `load`. The whole lies on the device of the
    worker, and a batch is one `index_select`: nothing touches single examples in Python.
    """

    train: Examples
    validation: Examples
    num_classes: int | None = None
    """Number of classes; None for regression."""

    def load(self) -> None:
        """Read or make the examples; called once, on every worker.

        Raises:
            DataError: they cannot be had, or are not what the spec says.
        """

    def files(self) -> list[Path]:
        """The files that `load` reads; their content and the constructor's arguments make the data.

        Raises:
            DataError: one of them is not there.
        """
        return []

    def transform(self, inputs: Tensor) -> Tensor:
        """What a batch of stored inputs, (n, ...), looks like to the model. By default it is left as it is."""
        return inputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example as the model sees it."""
        return tuple(self.transform(self.train.inputs[:1]).shape[1:])

    def take(self, examples: Examples, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples at `indices`: int64, (n,), or a slice."""
        if isinstance(indices, slice):
            return self.transform(examples.inputs[indices]), examples.targets[indices]
        return self.transform(examples.inputs.index_select(0, indices)), examples.targets.index_select(0, indices)
