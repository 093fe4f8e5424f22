"""How many floating-point operations a step takes."""

import copy
import warnings
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lockstep.workers.engine.compiler import without_compiling
from lockstep.workers.engine.module import Module
from lockstep.workers.engine.randomness import Settings


def flops_per_step(module: Module, example: Sequence[Tensor], settings: Settings) -> float:
    """Count those of the matrix products, convolutions and attentions of a minibatch, forward and backward.

    Counted on a copy that shares the parameters' memory, between two steps: whoever looks on while a step computes has
    PyTorch choose other kernels for some operations, and so changes bits. Nor may the compiler see a function that is
    looked at: it would compile it no more, and the steps that follow would compute otherwise than the first. Without
    data ("meta" tensors) it would need no time, but the import of the compiler, 1.3 s.

    Args:
        module: whose steps they are; nothing of it is changed.
        example: inputs and targets of a few examples, (n, ...) each, on the module's device.
        settings: of the run.

    Returns:
        Their number; 0 for a module that cannot be copied.
    """
    try:
        double = copy.deepcopy(module, {id(parameter): _alias(parameter) for parameter in module.parameters()})
        inputs, targets = example
        with warnings.catch_warnings(), without_compiling(), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")  # of a module that is compiled, that somebody looks on
            double.loss(settings.precision.outputs(double, inputs), targets).sum().backward()  # type: ignore[no-untyped-call]
        return float(counter.get_total_flops() * settings.batch_size / len(targets))
    except Exception:  # models may do anything
        return 0.0


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    alias = nn.Parameter(parameter.detach(), parameter.requires_grad)
    if alias.requires_grad:
        alias.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    return alias


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
