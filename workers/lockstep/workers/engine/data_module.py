"""What is trained on: the base class of data sets."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lockstep.workers.engine.state.digest import digest_of


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


@dataclass(frozen=True)
class Contents:
    """What a data set holds at a moment.

    Attributes:
        tensors: inputs and targets of both sets.
        versions: how often each of them was written to by then.
    """

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, data: "DataModule") -> "Contents":
        tensors = (*data.train, *data.validation)
        return cls(tensors, tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors))

    def are_those_of(self, data: "DataModule") -> bool:
        """Whether nobody has replaced the tensors or written into them since."""
        now = Contents.of(data)
        return all(map(operator.is_, self.tensors, now.tensors)) and self.versions == now.versions


class DataModule:
    """A training and a validation set; the base of Lockstep's data sets and of a user's own.

    A subclass sets `train` and `validation`, in its constructor or in `load`. The whole lies on the device of the
    worker, and a batch is one `index_select`: nothing touches single examples in Python.
    """

    train: Examples
    validation: Examples
    num_classes: int | None = None
    """Number of classes; None for regression."""
    training: bool = False
    """Whether what is taken now is trained on; `transform` may look at it, as a layer looks at its own."""
    field: str = "data"
    """What errors name when the data is at fault."""
    _known: tuple[Contents, str] | None = None

    def load(self) -> None:
        """Read or make the examples; called once, on every worker.

        Raises:
            DataError: they cannot be had, or are not what was asked for.
        """

    def files(self) -> list[Path]:
        """The files that `load` reads; their content and the constructor's arguments make the data.

        Raises:
            DataError: one of them is not there.
        """
        return []

    def digest(self) -> str:
        """SHA-256, hex, over dtype, shape and bytes of the stored inputs and targets of both sets.

        It is computed when it is first asked for, 1 ms for each MB, and then only when tensors have changed.
        """
        if self._known is None or not self._known[0].are_those_of(self):
            parts = {"train": self.train, "validation": self.validation}
            tensors = {f"{part}.{name}": tensor for part in parts for name, tensor in parts[part]._asdict().items()}
            self._known = Contents.of(self), digest_of(tensors)
        return self._known[1]

    def move_to(self, device: torch.device) -> None:
        """Have the examples lie on another device; the digest is that of before."""
        digest = self.digest()
        self.train, self.validation = self.train.to(device), self.validation.to(device)
        self._known = Contents.of(self), digest

    def transform(self, inputs: Tensor) -> Tensor:
        """What a batch of stored inputs, (n, ...), looks like to the model. By default it is left as it is.

        Augmentation belongs here, where `self.training` is true. It may draw from the generators of torch, `random` and
        NumPy, which are seeded for each shard before; not from one of its own, which would go on from shard to shard.
        """
        return inputs

    def preprocessing(self) -> dict[str, Any]:
        """What becomes of raw examples before the model sees them, for whoever predicts later; known once loaded.

        Returns:
            For "inputs" and "targets", as far as something is done to them, an object with "divide_by", a number, or
            with "mean" and "std", lists: (raw - mean) / std, by column, or for all values where there is but one
            item. Nothing of what is told here is computed with.
        """
        return {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example as the model sees it."""
        return tuple(self.transform(self.train.inputs[:1]).shape[1:])

    def described(self) -> dict[str, Any]:
        """What a model has to fit: "input_shape", and "num_classes", which is null for regression."""
        return {"input_shape": list(self.input_shape), "num_classes": self.num_classes}

    def take(self, examples: Examples, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples at `indices`: int64, (n,), or a slice."""
        if isinstance(indices, slice):
            return self.transform(examples.inputs[indices]), examples.targets[indices]
        return self.transform(examples.inputs.index_select(0, indices)), examples.targets.index_select(0, indices)
