"""How many floating-point operations a step takes."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from lockstep.workers.engine.dry_run import without_compiling
from lockstep.workers.engine.module import Module


def flops_per_step(module: Module, example: Sequence[Tensor], batch_size: int) -> float:
    """Count those of the matrix products, convolutions and attentions of a minibatch, forward and backward.

    Counted on a copy without data ("meta" tensors), between two steps: whoever looks on while a step computes has
    PyTorch choose other kernels for some operations, and so changes bits. Nor may the compiler see a function that is
    looked at: it would compile it no more, and the steps that follow would compute otherwise than the first.

    Args:
        module: whose steps they are; nothing of it is changed.
        example: inputs and targets of any number of examples, (n, ...) each.
        batch_size: examples of a minibatch.

    Returns:
        Their number; 0 for a module that cannot be run without data.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late, as it is needed once

    try:
        kept = {id(tensor): _without_data(tensor) for tensor in (*module.parameters(), *module.buffers())}
        double = copy.deepcopy(module, kept)
        inputs, targets = (part.new_empty((batch_size, *part.shape[1:]), device="meta") for part in example)
        with without_compiling(), FlopCounterMode(display=False) as counter:
            double.loss(double(inputs), targets).sum().backward()  # type: ignore[no-untyped-call]
        return float(counter.get_total_flops())
    except Exception:  # models may do anything
        return 0.0


def _without_data(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, tensor.requires_grad)
    return empty
