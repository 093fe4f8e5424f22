"""Everything that the rest of a training run depends on, as one value.

Healing, joining and checkpoints all go through it, so that there is one list of what must not be forgotten.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.state.digest import bytes_of
from lockstep.workers.engine.state.dtypes import DTYPES
from lockstep.workers.engine.state.optimizer_state import OptimizerState, StateMismatch, orders_of

NOTES = "notes"
MODEL, BUFFER = "model.", "buffer."
STATE_DICT_HINT = (
    "have state_dict() and its hooks leave names and tensors as nn.Module gives them, and convert what was saved or "
    "will be loaded elsewhere"
)
GROUPS, ON_HOST, SHAPES = "param_groups", "on_host", "parameter_shapes"
STRIDES, ORDERS = "strides", "orders"
"""Of what the optimizer keeps, and of the weights: those that do not lie in the order of their dimensions."""


@dataclass(frozen=True)
class TrainState:
    """The state of training after a step.

    Attributes:
        step: steps applied.
        model: every entry of the module's state_dict, by name.
        training: the optimizer's tensors and the buffers that state_dict leaves out, by prefixed name.
        notes: all else, as JSON can say it; floats survive it bit for bit.
    """

    step: int
    model: dict[str, Tensor]
    training: dict[str, Tensor]
    notes: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, notes: dict[str, Any]) -> "TrainState":
        """A copy, in host memory, of what a module and its optimizer hold now.

        Raises:
            ModelError: the optimizer keeps what no checkpoint can hold.
        """
        kept = module.state_dict()
        buffers = {BUFFER + name: tensor for name, tensor in module.named_buffers() if name not in kept}
        own = OptimizerState.of(optimizer)
        return cls(
            step,
            {name: _copy(tensor) for name, tensor in kept.items()},
            {name: _copy(tensor) for name, tensor in (buffers | dict(own.tensors)).items()},
            notes
            | {"optimizer": own.entries, GROUPS: own.groups, ON_HOST: own.on_host, SHAPES: own.shapes}
            | {STRIDES: dict(own.strides), ORDERS: orders_of(kept)},
        )

    def put_into(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set a module and its optimizer to this state; a module's tensors stay where they are, and views stay views.

        Raises:
            StateMismatch: names or shapes differ; nothing has changed.
        """
        weights = module.state_dict()
        check_fit(self.model, weights)
        buffers = {name: tensor for name, tensor in module.named_buffers() if name not in weights}
        kept = {n.removeprefix(BUFFER): tensor for n, tensor in self.training.items() if n.startswith(BUFFER)}
        check_fit(kept, buffers)
        if self.notes.get(ORDERS, orders := orders_of(weights)) != orders:  # a vector of all would be read otherwise
            raise StateMismatch("its weights lay in another order in memory; go on with the memory_format that it had")
        own = OptimizerState(
            {name: tensor for name, tensor in self.training.items() if not name.startswith(BUFFER)},
            self.notes["optimizer"],
            self.notes.get(GROUPS),
            self.notes.get(ON_HOST, []),
            self.notes.get(SHAPES),
            self.notes.get(STRIDES, {}),
        )
        own.put_into(optimizer)
        copy_into(self.model, weights)
        copy_into(kept, buffers)

    def to_bytes(self) -> bytes:
        """All of it as one safetensors file."""
        tensors = {MODEL + name: tensor for name, tensor in self.model.items()} | self.training
        return save(tensors, {NOTES: json.dumps({"step": self.step} | self.notes)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainState":
        """The reverse of `to_bytes`."""
        header_size = int.from_bytes(data[:8], "little")
        notes = json.loads(json.loads(data[8 : 8 + header_size])["__metadata__"][NOTES])
        tensors = load(data)
        return cls(
            notes.pop("step"),
            {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)},
            {name: tensor for name, tensor in tensors.items() if not name.startswith(MODEL)},
            notes,
        )


def safetensors_of(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The parts of a safetensors file, in order, without a copy of the tensors: contiguous ones in host memory.

    The library's own writer copies everything twice, and holds the interpreter's lock meanwhile: a stop of training.
    """
    header: dict[str, Any] = {}
    end = 0
    # As the library has them: the widest types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        if tensor.numel():
            yield bytes_of(tensor)


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds infinities or what is no number; None when all are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            least, greatest = tensor.detach().aminmax()  # in one pass and without a copy; both are NaN if anything is
            if not (math.isfinite(least) and math.isfinite(greatest)):
                return name
    return None


def put_weights(weights: dict[str, Tensor], module: nn.Module) -> None:
    """Set the entries of a module's state_dict.

    Raises:
        StateMismatch: names or shapes differ; nothing has changed.
    """
    own = module.state_dict()
    check_fit(weights, own)
    copy_into(weights, own)


def check_state_dict(module: nn.Module) -> None:
    """Check that a module's state_dict holds the memory of its parameters and buffers, to be read and to be written.

    Raises:
        ModelError: it holds copies, or leaves out what is trained; names the first.
    """
    own = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    places = {(tensor.data_ptr(), tensor.dtype, tensor.numel()) for _, tensor in own if tensor.numel()}
    found = set()
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ModelError(f"state_dict has {name}, a {type(tensor).__name__}; {STATE_DICT_HINT}")
        place = tensor.data_ptr(), tensor.dtype, tensor.numel()
        if tensor.numel() and place not in places:
            raise ModelError(
                f"{name} in state_dict is a copy, or no parameter or buffer, so that nothing can be put back into it; "
                f"{STATE_DICT_HINT}"
            )
        found.add(place)
    for name, tensor in module.named_parameters():
        place = tensor.data_ptr(), tensor.dtype, tensor.numel()
        if tensor.requires_grad and tensor.numel() and place not in found:
            raise ModelError(f"{name} is trained and is not in state_dict; {STATE_DICT_HINT}")


def check_fit(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Check that there is a tensor for each place, of its shape, and none more.

    Raises:
        StateMismatch: there is not; names the first.
    """
    for name, place in places.items():
        if name not in tensors:
            raise StateMismatch(f"there is no {name}, of shape {list(place.shape)}")
        if tensors[name].shape != place.shape:
            raise StateMismatch(f"{name} has shape {list(tensors[name].shape)}, the model wants {list(place.shape)}")
    unknown = [name for name in tensors if name not in places]
    if unknown:
        raise StateMismatch(f"the model has no {unknown[0]}")


def copy_into(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Set each of the places, which stay where they are."""
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


__all__ = ["SafetensorError", "StateMismatch", "TrainState", "put_weights"]
