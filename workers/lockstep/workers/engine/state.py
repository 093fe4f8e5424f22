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

from lockstep.workers.engine.digest import bytes_of
from lockstep.workers.engine.update import CONSTANT

NOTES = "notes"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What safetensors calls the types that a state may have."""
MODEL, OPTIMIZER, BUFFER = "model.", "optimizer.", "buffer."
GROUPS = "param_groups"


class StateMismatch(ValueError):
    """A state does not fit the model or the optimizer; the message names the entry."""


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
        """A copy, in host memory, of what a module and its optimizer hold now."""
        kept = module.state_dict()
        training = {BUFFER + name: tensor for name, tensor in module.named_buffers() if name not in kept}
        numbers: dict[str, Any] = {}
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    training[f"{OPTIMIZER}{parameter}.{name}"] = value
                elif value is not None:
                    numbers[f"{parameter}.{name}"] = value
        return cls(
            step,
            {name: _copy(tensor) for name, tensor in kept.items()},
            {name: _copy(tensor) for name, tensor in training.items()},
            notes | {"optimizer": numbers, GROUPS: [_mutable(group) for group in optimizer.param_groups]},
        )

    def put_into(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set a module and its optimizer to this state; tensors stay where they are, and views stay views.

        Raises:
            StateMismatch: names or shapes differ; nothing has changed.
        """
        put_weights(self.model, module)
        buffers = dict(module.named_buffers())
        values: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for name, tensor in self.training.items():
                if name.startswith(BUFFER):
                    buffers[name.removeprefix(BUFFER)].copy_(tensor)
                else:
                    parameter, entry = name.removeprefix(OPTIMIZER).split(".", 1)
                    values.setdefault(int(parameter), {})[entry] = tensor
        for name, number in self.notes["optimizer"].items():
            parameter, entry = name.split(".", 1)
            values.setdefault(int(parameter), {})[entry] = number
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
        for group, kept in zip(optimizer.param_groups, self.notes.get(GROUPS, []), strict=False):
            group.update(kept)

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
    for name, tensor in own.items():
        if name not in weights:
            raise StateMismatch(f"there is no {name}, of shape {list(tensor.shape)}")
        if weights[name].shape != tensor.shape:
            raise StateMismatch(f"{name} has shape {list(weights[name].shape)}, the model wants {list(tensor.shape)}")
    unknown = [name for name in weights if name not in own]
    if unknown:
        raise StateMismatch(f"the model has no {unknown[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _mutable(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers that an optimizer may keep in a parameter group, beside the options that it is made with."""
    return {
        name: value
        for name, value in group.items()
        if name not in (*CONSTANT, "params") and isinstance(value, bool | int | float)
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


__all__ = ["SafetensorError", "StateMismatch", "TrainState", "put_weights"]
