"""What is trained: the base classes of models."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

METHODS = ("loss", "weight_of", "count_correct")
"""Methods that the engine calls; an attribute of the same name would hide them."""


class Module(nn.Module):
    """A model with its loss; the base of Lockstep's models and of a user's own.

    Write `forward`, and `loss` unless a subclass below has the right one. Sums, means and gradients over a minibatch
    are the engine's work: a module never sees more than a shard of it. A hook on a parameter sees the gradient of the
    sum of a shard's losses.
    """

    buffer_policies: Mapping[str, str] = {}
    """How what the shards of a minibatch leave in a buffer becomes one, by the buffer's name; any layer may say it.

    "mean" of the shards, the default for floats; "sum" of what each has added, for counts; "max"; "min"; or "same",
    the default for integers and booleans: all shards must make the same of it, or the job fails with its name.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, not reduced.

        May also be set to a layer or function that does not reduce: `self.loss = nn.MSELoss(reduction="none")`.

        Args:
            outputs: what `forward` returned, (n, ...).
            targets: (n, ...).

        Returns:
            Losses in the dtype of the outputs, (n,), or one for each token or other unit that counts.
        """
        raise NotImplementedError

    def weight_of(self, losses: Tensor, targets: Tensor) -> float | Tensor:
        """How much the losses count when the mean is taken: their number, unless some are masked."""
        return losses.numel()

    def count_correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The number of right answers, a scalar; None for a model that is not judged by accuracy."""
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in (("weight", "weight_of"), ("correct", "count_correct")):
            if callable(vars(cls).get(old)):
                raise TypeError(f"{cls.__name__}.{old} is never called; the engine calls {new}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in METHODS:
            super().__setattr__(name, value)
            return
        if not callable(value) or isinstance(value, Tensor):
            raise TypeError(
                f"{type(self).__name__}.{name} is a method that the engine calls and cannot be a "
                f"{type(value).__name__}; choose another name for this attribute"
            )
        reduction = getattr(value, "reduction", "none")
        if reduction != "none":
            raise ValueError(
                f"{type(self).__name__}.{name} has reduction={reduction!r}, but the engine needs the loss of each "
                'example and takes their mean itself; set reduction="none"'
            )
        super().__setattr__(name, value)
        # A layer is kept where its weights are found, but there the method would hide it.
        self.__dict__[name] = value


class Classifier(Module):
    """A model whose outputs are scores, (n, classes), for targets that are class numbers, int64, (n,)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, -log softmax(outputs)[target], (n,)."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def count_correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many examples have their highest score at their class."""
        return (outputs.argmax(dim=1) == targets).sum()


class Regressor(Module):
    """A model whose outputs are numbers, (n, 1), for targets that are numbers, (n, 1)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half the squared error, (outputs - target)**2 / 2, (n,).

        Raises:
            ValueError: the shapes differ, which would compare every output with every target.
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the outputs have the shape {tuple(outputs.shape)} and the targets {tuple(targets.shape)}; make both "
                "(n, 1), as with targets.unsqueeze(1)"
            )
        return ((outputs - targets) ** 2 / 2).sum(dim=1)


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether some layer normalises over the examples of a shard, and so needs at least two of them."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
