"""A model whose parameters are views of one vector, and whose gradients are views of another.

An exchange then moves one buffer, and the optimizer updates one tensor. Offsets are multiples of a cache line and do
not depend on the number of workers, because a kernel may take another path for data that is aligned otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.exchange.reduce import ALIGNMENT_ELEMENTS, CACHE_LINE_BYTES
from lockstep.workers.engine.tensor_memory import overlaps, strides_of

NORM_BLOCK = 4096
"""Elements whose squares are summed in the vector's own precision; the blocks' norms are joined in float64."""


class Slot(NamedTuple):
    """Where a tensor lies in a vector."""

    tensor: Tensor
    start: int

    def of(self, vector: Tensor) -> Tensor:
        """The part of `vector` that belongs to the tensor, in its shape and its order of dimensions."""
        part = vector[self.start : self.start + self.tensor.numel()]
        return part.as_strided(self.tensor.shape, strides_of(self.tensor), part.storage_offset())


def lay_out(tensors: list[Tensor]) -> tuple[list[Slot], int]:
    """Give each tensor of one dtype a place in a vector; returns the places and the vector's length."""
    slots, end = [], 0
    for tensor in tensors:
        slots.append(Slot(tensor, end))
        unit = max(ALIGNMENT_ELEMENTS, CACHE_LINE_BYTES // tensor.element_size())
        end += -(-tensor.numel() // unit) * unit
    return slots, end


def l2_norm(vector: Tensor) -> Tensor:
    """L2 norm of a vector, float64, (). A function of the vector alone, much faster than in float64 throughout."""
    whole = vector.numel() // NORM_BLOCK * NORM_BLOCK
    at_least_single = torch.float32 if vector.element_size() < torch.float32.itemsize else None
    blocks = torch.linalg.vector_norm(vector[:whole].view(-1, NORM_BLOCK), dim=1, dtype=at_least_single).double()
    rest = torch.linalg.vector_norm(vector[whole:], dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(torch.cat((blocks, rest.view(1))))
    return norm


class FlatModel:
    """The trainable parameters of a module in one vector.

    Tied parameters are kept once; frozen ones are left where they are.

    Args:
        module: its parameters become views of `parameters`.

    Attributes:
        names: of the module's trainable parameters.
        trainable: these parameters.
        starts: where each of them starts in the vector.
        parameters: all of them, (size,); a leaf whose `grad` the trainer sets.
        size: length of the vector of parameters, and of that of gradients.
        gradients_come_whole: whether a backward pass adds to each gradient once, as it does unless a layer is used in
            several re-entrant checkpoints; None before the first one.

    Raises:
        ModelError: nothing to train, parameters of several dtypes or devices, or what cannot lie in a vector.
    """

    def __init__(self, module: nn.Module) -> None:
        named = check_trainable(module)
        check_can_be_flat(module, named)
        keep_recurrent_layers_flat(module)
        self.names, self.trainable = list(named), list(named.values())
        self._frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
        slots, self.size = lay_out([parameter.data for parameter in self.trainable])
        self.starts = [slot.start for slot in slots]
        vector = torch.zeros(self.size, dtype=self.trainable[0].dtype, device=self.trainable[0].device)
        for parameter, slot in zip(self.trainable, slots, strict=True):
            slot.of(vector).copy_(parameter.data)
            parameter.data = slot.of(vector)
        # Not those of before, which would keep the memory that the parameters have left.
        self._slots = [
            Slot(parameter.data, start) for parameter, start in zip(self.trainable, self.starts, strict=True)
        ]
        self._places = [parameter.data_ptr() for parameter in self.trainable]
        self.parameters = nn.Parameter(vector)
        self._gradients: list[Tensor] = []
        self._additions: list[int] = []
        self._versions: list[int] = []
        self._frozen_versions: list[int] = []
        self._module = module
        self.gradients_come_whole: bool | None = None

    def parts_of(self, vector: Tensor) -> list[Tensor]:
        """What belongs to each parameter in `vector`, (size,)."""
        return [slot.of(vector) for slot in self._slots]

    def point_gradients_at(self, vector: Tensor) -> None:
        """Make every parameter's gradient a view of `vector`, (size,), where autograd adds to it."""
        # By `data` each has a version counter of its own, which tells how often something was added to it.
        self._gradients = [part.data for part in self.parts_of(vector)]
        self.put_gradients_back()

    def put_gradients_back(self) -> None:
        """Undo what an optimizer needed."""
        for parameter, gradient in zip(self.trainable, self._gradients, strict=True):
            parameter.grad = gradient

    def begin_backward(self) -> None:
        """A backward pass comes next."""
        self._additions = [gradient._version for gradient in self._gradients]

    def additions(self) -> list[int]:
        """How often the last backward pass has added to each parameter's gradient."""
        return [gradient._version - before for gradient, before in zip(self._gradients, self._additions, strict=True)]

    def hooked(self) -> str | None:
        """Name of the first parameter on whose gradient the model has a hook."""
        return next((n for n, p in zip(self.names, self.trainable, strict=True) if p._backward_hooks), None)

    def refusing_sparse_gradients(self) -> list[RemovableHandle]:
        """Have a backward pass raise ModelError where a sparse gradient comes, until these are removed."""

        def refuse(name: str, gradient: Tensor) -> None:
            if gradient.layout != torch.strided:
                raise ModelError(f"the gradient of {name} is sparse, which is not supported; use sparse=False")

        return [
            parameter.register_hook(lambda gradient, name=name: refuse(name, gradient))  # type: ignore[no-untyped-call]
            for name, parameter in zip(self.names, self.trainable, strict=True)
        ]

    def when_added(self, added: Callable[[int], None]) -> list[RemovableHandle]:
        """Call `added` with a parameter's number whenever autograd has added to its gradient, until it is removed."""
        return [
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: added(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self.trainable)
        ]

    def note_parameters(self) -> None:
        """Note how often each parameter was written to before a step."""
        self._versions = [parameter._version for parameter in self.trainable]
        self._frozen_versions = [parameter._version for _, parameter in self._frozen]

    def check(self) -> None:
        """Check, after the shards of a step are computed, that the model has left parameters and gradients alone.

        Raises:
            ModelError: it has not; training would go on without some parameter, or with other gradients.
        """
        for name, parameter, gradient, place, version in zip(
            self.names, self.trainable, self._gradients, self._places, self._versions, strict=True
        ):
            if parameter.grad is not gradient:
                raise ModelError(
                    f"the model replaced a parameter's gradient: that of {name}; gradients are left to the engine, so "
                    "take zero_grad(), backward() and whatever else sets `grad` out of the model"
                )
            if parameter.data_ptr() != place:
                raise ModelError(
                    f"the model moved {name} to other memory, so that it would learn no more; do not set `data` of a "
                    "parameter in forward or loss"
                )
            if parameter._version != version:
                raise ModelError(
                    f"the model changed {name} while a shard was computed, which only the optimizer may; compute with "
                    "a changed copy, as in functional.linear(inputs, self.weight.clamp(-1, 1)); an embedding with "
                    "max_norm does this too"
                )
            if not parameter.requires_grad:
                raise ModelError(f"{name} was frozen in training; freeze it before training begins")
        for (name, parameter), version in zip(self._frozen, self._frozen_versions, strict=True):
            if parameter._version != version:
                raise ModelError(
                    f"the model changed {name} while a shard was computed, which is a frozen parameter; what forward "
                    "changes must be a buffer: register_buffer"
                )
            if parameter.requires_grad:
                raise ModelError(
                    f"{name} was frozen when training began and is to be trained now, but is not known to the "
                    "optimizer; unfreeze it before training begins, and start a second run from the first one's weights"
                )

    def check_structure(self) -> None:
        """Check that the module still has the parameters with which training began; walks through all layers.

        Raises:
            ModelError: it has not.
        """
        now = dict(self._module.named_parameters())
        for name, parameter in (*zip(self.names, self.trainable, strict=True), *self._frozen):
            if now.get(name) is not parameter:
                raise ModelError(
                    f"the model replaced or removed the parameter {name}, and the new one would not be trained; "
                    "assign parameters in the constructor alone"
                )

    def first_non_finite(self, vector: Tensor) -> str | None:
        """Name of the first parameter whose part of `vector`, (size,), holds what is not finite."""
        for name, part in zip(self.names, self.parts_of(vector), strict=True):
            if not part.isfinite().all():
                return name
        return None


def check_trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; lazy ones may have no shape yet.

    Raises:
        ModelError: there are none, they are of several kinds, or their gradients would be sparse; names which.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ModelError("the model has no trainable parameter")
    for name, parameter in trainable.items():
        if parameter.dtype.is_complex:
            raise ModelError(
                f"{name} is {parameter.dtype}; train real numbers, of shape (..., 2), and compute with "
                "torch.view_as_complex of them"
            )
    if len({(parameter.dtype, parameter.device) for parameter in trainable.values()}) > 1:
        kinds = {f"{parameter.dtype} on {parameter.device}": name for name, parameter in trainable.items()}
        shown = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise ModelError(f"the trainable parameters must share one dtype and one device: {shown}")
    for path, layer in module.named_modules():
        if getattr(layer, "sparse", False):
            raise ModelError(f"{path}: sparse gradients are not supported; build the embedding with sparse=False")
    return trainable


def check_can_be_flat(module: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
    """Check that parameters can be moved into one vector.

    Raises:
        ModelError: they cannot; names which, and what to do.
    """
    for name, parameter in trainable.items():
        if parameter._post_accumulate_grad_hooks:
            raise ModelError(
                f"{name} has a hook after its gradient is accumulated, which would see the sum over some shards, not "
                "the gradient of a minibatch; change gradients in the optimizer's step, or clip them with "
                "gradient_clip_norm"
            )
    everything = [*module.named_parameters(), *module.named_buffers()]
    for name, other in overlaps(everything):
        if name in trainable or other in trainable:
            raise ModelError(
                f"{name} shares memory with {other or 'itself'}, which would end when parameters are moved into one "
                "vector; tie weights by one Parameter, as in functional.linear(inputs, self.encoder.weight.t())"
            )


def keep_recurrent_layers_flat(module: nn.Module) -> None:
    """Have `flatten_parameters`, which models call in forward, move nothing: weights would leave the vector."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters = leave_in_place  # type: ignore[method-assign]


def leave_in_place() -> None:
    """The weights lie where the engine has put them."""
