"""What is trained: the base classes of models."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Module(nn.Module):
    """A model with its loss; the base of Lockstep's models and of a user's own.

    Write `forward`, and `loss` unless a subclass below has the right one. Sums, means and gradients over a minibatch
    are the engine's work: a module never sees more than a shard of it.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, not reduced.

        Args:
            outputs: what `forward` returned, (n, ...).
            targets: (n, ...).

        Returns:
            Losses in the dtype of the outputs, (n,), or one for each token or other unit that counts.
        """
        raise NotImplementedError

    def weight(self, losses: Tensor, targets: Tensor) -> float | Tensor:
        """How much the losses count when the mean is taken: their number, unless some are masked."""
        return losses.numel()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The number of right answers, a scalar; None for a model that is not judged by accuracy."""
        return None


class Classifier(Module):
    """A model whose outputs are scores, (n, classes), for targets that are class numbers, int64, (n,)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, -log softmax(outputs)[target], (n,)."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many examples have their highest score at their class."""
        return (outputs.argmax(dim=1) == targets).sum()


class Regressor(Module):
    """A model whose outputs are numbers, (n, 1), for targets that are numbers, (n, 1)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half the squared error, (outputs - target)**2 / 2, (n,)."""
        return ((outputs - targets) ** 2 / 2).sum(dim=1)


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether some layer normalises over the examples of a shard, and so needs at least two of them."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def materialise(module: nn.Module, inputs: Tensor) -> None:
    """Give lazy layers their shapes by a dry run on `inputs`, (n, ...), in evaluation mode."""
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        module.eval()
        with torch.no_grad():
            module(inputs)
