"""What a model and its data hold at a moment, in a few bytes, to see later what has changed."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHUNK_WORDS = 1 << 20
MIXER = 0x5851F42D4C957F2D
WORD = (1 << 64) - 1
# What torch and the data classes keep for themselves.
PASSED_OVER = frozenset({"training", "train", "validation", "_known", "flatten_parameters"})


def content(tensor: Tensor) -> int:
    """64 bits that tell the bits of a tensor and their order, computed where it lies."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1)
    total = flat.numel()
    if not total:
        return 0
    bytes_ = flat.view(torch.uint8)
    rest = -bytes_.numel() % 8
    if rest or bytes_.storage_offset() % 8:
        bytes_ = torch.cat((bytes_, bytes_.new_zeros(rest)))
    words = bytes_.view(torch.int64)
    for start in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        weights = torch.arange(1, chunk.numel() + 1, device=chunk.device).mul_(MIXER).bitwise_or_(1)
        total = (total * MIXER + int(weights.mul_(chunk).sum())) & WORD
    return total


def joined(contents: Iterable[int]) -> int:
    """64 bits that tell several contents and their order."""
    total = 0
    for each in contents:
        total = (total * MIXER + each) & WORD
    return total


@dataclass(frozen=True)
class Registered:
    """A parameter or a buffer.

    Attributes:
        tensor: the object itself, kept alive so that no other one can take its place.
        place: where its memory begins.
        content: see `content`.
    """

    tensor: Tensor
    place: int
    content: int


def registered(module: nn.Module) -> dict[str, Registered]:
    """All parameters and buffers by name."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: Registered(tensor, tensor.data_ptr(), content(tensor)) for name, tensor in named.items()}


def attributes(module: nn.Module, data: object) -> dict[str, Any]:
    """What plain attributes of the layers and of the data hold that may be a state: tensors, numbers, generators.

    A value is one that can be compared, and tells one content from another. Other objects are left out.
    """
    found: dict[str, Any] = {}
    for path, owner in (*module.named_modules(), ("data", data)):
        for name, value in vars(owner).items():
            if name in PASSED_OVER:
                continue
            state = _state_of(value)
            if state is not None:
                found[f"{path}.{name}" if path else name] = state
    return found


def _state_of(value: Any) -> Any:
    match value:
        case bool() | int():
            return value
        case float():
            return repr(value)  # under which NaN is itself
        case Tensor():
            return tuple(value.shape), str(value.dtype), content(value)
        case torch.Generator():
            return content(value.get_state())
        case random.Random():
            return value.getstate()
        case np.random.Generator():
            return repr(value.bit_generator.state)
        case np.random.RandomState():
            return repr(value.get_state(legacy=False))
        case np.ndarray() if value.dtype != object:
            return value.shape, hashlib.blake2b(np.ascontiguousarray(value).data).digest()
        case _:
            return None
