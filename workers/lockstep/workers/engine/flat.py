"""A model whose parameters are views of one vector, and whose gradients are views of another.

An exchange then moves one buffer, and the optimizer updates one tensor. Offsets are multiples of a cache line and do
not depend on the number of workers, because a kernel may take another path for data that is aligned otherwise.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lockstep.workers.engine.reduce import ALIGNMENT_ELEMENTS

NORM_BLOCK = 4096
"""Elements whose squares are summed in the vector's own precision; the blocks' norms are joined in float64."""


class Slot(NamedTuple):
    """Where a tensor lies in a vector."""

    tensor: Tensor
    start: int

    def of(self, vector: Tensor) -> Tensor:
        """The part of `vector` that belongs to the tensor, in its shape."""
        return vector[self.start : self.start + self.tensor.numel()].view_as(self.tensor)


def lay_out(tensors: list[Tensor]) -> tuple[list[Slot], int]:
    """Give each tensor a place in a vector; returns the places and the vector's length."""
    slots, end = [], 0
    for tensor in tensors:
        slots.append(Slot(tensor, end))
        end += -(-tensor.numel() // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS
    return slots, end


def l2_norm(vector: Tensor) -> Tensor:
    """L2 norm of a vector, float64, (). A function of the vector alone, much faster than in float64 throughout."""
    whole = vector.numel() // NORM_BLOCK * NORM_BLOCK
    blocks = torch.linalg.vector_norm(vector[:whole].view(-1, NORM_BLOCK), dim=1).double()
    rest = torch.linalg.vector_norm(vector[whole:], dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(torch.cat((blocks, rest.view(1))))
    return norm


class FlatModel:
    """The parameters of a module in one vector, and the values that its shards leave behind.

    Tied parameters are kept once; frozen ones are left where they are.

    Args:
        module: its parameters become views of `parameters`.

    Attributes:
        trainable: the module's trainable parameters.
        starts: where each of them starts in the vector.
        parameters: all of them, (size,); a leaf whose `grad` the trainer sets.
        size: length of the vector of parameters, and of that of gradients.
        buffers_size: length of the vector that carries the buffers of batch normalisation and the like.
        gradients_come_whole: whether a backward pass adds to each gradient once, as it does unless a layer is used in
            several re-entrant checkpoints; None before the first one.

    Raises:
        ValueError: nothing to train, parameters of several dtypes or devices, or sparse gradients.
    """

    def __init__(self, module: nn.Module) -> None:
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError("the model has no trainable parameter")
        if len({(parameter.dtype, parameter.device) for parameter in trainable}) > 1:
            raise ValueError("the trainable parameters must share one dtype and one device")
        if any(getattr(layer, "sparse", False) for layer in module.modules()):
            raise ValueError("sparse gradients are not supported; build the embedding with sparse=False")
        slots, self.size = lay_out([parameter.data for parameter in trainable])
        self.trainable = trainable
        self.starts = [slot.start for slot in slots]
        vector = torch.zeros(self.size, dtype=trainable[0].dtype, device=trainable[0].device)
        for parameter, slot in zip(trainable, slots, strict=True):
            slot.of(vector).copy_(parameter.data)
            parameter.data = slot.of(vector)
        # Not those of before, which would keep the memory that the parameters have left.
        self._slots = [Slot(parameter.data, start) for parameter, start in zip(trainable, self.starts, strict=True)]
        self.parameters = nn.Parameter(vector)
        self._buffers, self.buffers_size = lay_out([b for b in module.buffers() if b.dtype != torch.bool])
        self._before = [slot.tensor.clone() for slot in self._buffers]
        self.gradients_come_whole: bool | None = None

    def point_gradients_at(self, vector: Tensor) -> None:
        """Make every parameter's gradient a view of `vector`, (size,), where autograd adds to it."""
        for parameter, slot in zip(self.trainable, self._slots, strict=True):
            parameter.grad = slot.of(vector)

    @contextlib.contextmanager
    def counting_additions(self) -> Iterator[None]:
        """Around the first backward pass, to learn whether gradients come whole."""
        counts = [0] * len(self.trainable)

        def added(index: int) -> None:
            counts[index] += 1

        hooks = self.when_added(added)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.gradients_come_whole = max(counts) <= 1

    def when_added(self, added: Callable[[int], None]) -> list[RemovableHandle]:
        """Call `added` with a parameter's number whenever autograd has added to its gradient, until it is removed."""
        return [
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: added(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self.trainable)
        ]

    def check_gradients_lie_in(self, vector: Tensor) -> None:
        """Check that nothing has replaced the views, as `zero_grad(set_to_none=True)` would.

        Raises:
            RuntimeError: something has; training would go on with gradients of zero.
        """
        for parameter, slot in zip(self.trainable, self._slots, strict=True):
            if parameter.grad is None or parameter.grad.data_ptr() != slot.of(vector).data_ptr():
                raise RuntimeError("the model replaced a parameter's gradient; gradients must be left to the engine")

    def remember_buffers(self) -> None:
        """Note the buffers as they are before a step."""
        for before, slot in zip(self._before, self._buffers, strict=True):
            before.copy_(slot.tensor)

    def restore_buffers(self) -> None:
        """Set the buffers to what they were before the step, so that every shard starts from the same."""
        for before, slot in zip(self._before, self._buffers, strict=True):
            slot.tensor.copy_(before)

    def add_buffer_changes(self, vector: Tensor) -> None:
        """Add how a shard has changed the buffers to `vector`, (buffers_size,)."""
        for before, slot in zip(self._before, self._buffers, strict=True):
            # A buffer may hold infinities (a mask does), whose difference is no number.
            slot.of(vector).add_((slot.tensor - before).masked_fill_(slot.tensor == before, 0))

    def apply_buffer_changes(self, vector: Tensor, shards: int) -> None:
        """Set the buffers to their mean over `shards`, from the sum of changes in `vector`, (buffers_size,).

        Counters change alike in every shard, so that their mean change is exact.
        """
        for before, slot in zip(self._before, self._buffers, strict=True):
            slot.tensor.copy_(before + (slot.of(vector) / shards).to(before.dtype))
