"""What parameters and buffers hold at a moment, in a few bytes, to see later what has changed."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lockstep.workers.engine.tensor_memory import words

CHUNK_WORDS = 1 << 20
MIXER = 0x5851F42D4C957F2D
WORD = (1 << 64) - 1


def content(tensor: Tensor) -> int:
    """64 bits that tell the bits of a tensor and their order, computed where it lies.

    Raises:
        RuntimeError: it is of a kind that cannot be read.
    """
    parts = dense_parts(tensor)
    if parts is not None:
        return joined(map(content, parts))
    total = tensor.numel()
    if not total:
        return 0
    integers = words(tensor)
    for start in range(0, integers.numel(), CHUNK_WORDS):
        chunk = integers[start : start + CHUNK_WORDS]
        weights = torch.arange(1, chunk.numel() + 1, device=chunk.device).mul_(MIXER).bitwise_or_(1)
        total = (total * MIXER + int(weights.mul_(chunk).sum())) & WORD
    return total


def dense_parts(tensor: Tensor) -> list[Tensor] | None:
    """Dense tensors that together hold what one of another kind does; None for one that is dense itself."""
    if tensor.is_meta:
        return []
    if tensor.is_quantized:
        return [tensor.dequantize()]
    match tensor.layout:
        case torch.sparse_coo:
            return [tensor._indices(), tensor._values()]
        case torch.sparse_csr | torch.sparse_bsr:
            return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        case torch.sparse_csc | torch.sparse_bsc:
            return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
        case torch.jagged:
            return [tensor.offsets(), tensor.values()]  # type: ignore[attr-defined]
        case torch.strided if tensor.is_nested:
            return [tensor._nested_tensor_size(), tensor.values()]
        case torch.strided:
            return None
        case _:
            return [tensor.to_dense()]


def content_if_readable(tensor: Tensor) -> int | None:
    """The same, or None for a tensor of a kind that cannot be read."""
    try:
        return content(tensor)
    except (RuntimeError, TypeError):  # as torch and the classes derived from its tensors say so
        return None


def joined(contents: Iterable[int]) -> int:
    """64 bits that tell several contents and their order."""
    total = 0
    for each in contents:
        total = (total * MIXER + each) & WORD
    return total


class Registered(NamedTuple):
    """A parameter or a buffer.

    Attributes:
        tensor: the object itself, kept alive so that no other one can take its place.
        place: where its memory begins.
        content: see `content`.
    """

    tensor: Tensor
    place: int
    content: int


def registered(module: nn.Module, beat: Callable[[], None]) -> dict[str, Registered]:
    """All parameters and buffers by name; `beat` is called before each, since reading all may take long."""
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        beat()
        found[name] = Registered(tensor, tensor.data_ptr(), content(tensor))
    return found
