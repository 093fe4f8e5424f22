"""What is done with a module before its parameters are laid out: its modes are noted, and it runs once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from lockstep.workers.engine.compiler import without_compiling
from lockstep.workers.engine.data_module import DataModule, Examples
from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.module import Module
from lockstep.workers.engine.precision import Precision
from lockstep.workers.engine.state.dtypes import DTYPES

HINT = 'return one loss for each example, as functional.cross_entropy(outputs, targets, reduction="none") does'


class Modes:
    """Which layers train.

    Args:
        module: layers of it that are set to evaluation now, while it is not, stay so whenever it trains.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._held = [layer for layer in module.modules() if not layer.training] if module.training else []

    def train(self) -> None:
        """Set the module to training."""
        self._module.train()
        for layer in self._held:
            layer.training = False


def rehearse(module: Module, data: DataModule, examples: Examples, precision: Precision) -> bool:
    """Run a module on a few examples, in evaluation mode: lazy layers get their shapes, and its loss is looked at.

    Args:
        module: left in evaluation mode, and its buffers as they were; new ones stay.
        data: that it is to be trained on.
        examples: of which the first few are taken.
        precision: in which it computes.

    Returns:
        Whether the module counts right answers.

    Raises:
        ModelError: the loss is not one of each example, or the module has what no checkpoint can hold.
    """
    module.eval()
    kept = kept_buffers(module)
    shapes, counts = [], False
    with torch.no_grad(), without_compiling():
        for count in (2, 3):
            inputs, targets = data.take(examples, slice(0, count))
            outputs = precision.outputs(module, inputs)
            losses = module.loss(outputs, targets)
            check_losses(losses)
            precision.check_losses(losses, module)
            shapes.append(losses.shape)
            counts = module.count_correct(outputs, targets) is not None
    for place, key, tensor, version, values in kept:
        place[key] = tensor
        if tensor._version != version:
            tensor.copy_(values)
    if len(examples) >= 3:
        check_shapes(*shapes)
    for name, value in (*module.state_dict().items(), *module.named_buffers()):
        if isinstance(value, Tensor) and value.dtype not in DTYPES:
            raise ModelError(f"{name} is {value.dtype}, which no checkpoint can hold")
    return counts


def kept_buffers(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor, int, Tensor]]:
    """Where each buffer that has values lies, the buffer, how often it was written to, and a copy."""
    return [
        (layer._buffers, key, tensor, tensor._version, tensor.clone())
        for layer in module.modules()
        for key, tensor in layer._buffers.items()
        if tensor is not None and not isinstance(tensor, UninitializedTensorMixin) and not tensor.is_inference()
    ]


def check_losses(losses: Tensor) -> None:
    """Check that what `loss` returned can be losses of examples.

    Raises:
        ModelError: it cannot.
    """
    if not isinstance(losses, Tensor):
        raise ModelError(f"loss returned {losses!r}, which is no tensor; {HINT}")
    if losses.dim() == 0:
        raise ModelError(f"loss returned a single number, which is a mean or sum already; {HINT}")


def check_shapes(of_two: torch.Size, of_three: torch.Size) -> None:
    """Check the shapes of the losses of two and of three examples.

    Raises:
        ModelError: they do not have a loss for each example.
    """
    if of_two.numel() == of_three.numel() == 1:
        raise ModelError(f"loss returned one loss for any number of examples; {HINT}")
    if of_two == (2, 2) and of_three == (3, 3):
        raise ModelError(
            "loss returned a loss for each pair of examples, of shape (n, n): outputs and targets have shapes, such as "
            f"(n, 1) and (n,), that are compared each with each; {HINT}"
        )
