"""What a model and its data hold at a moment, in a few bytes, to see later what has changed."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lockstep.workers.engine.tensor_memory import words

CHUNK_WORDS = 1 << 20
MIXER = 0x5851F42D4C957F2D
WORD = (1 << 64) - 1
LARGE_BYTES = 64 << 20
"""Above this size attributes are not read as a whole, which data of many gigabytes would take minutes for."""
BLOCK_BYTES = 64 << 10
# What torch and the data classes keep for themselves.
PASSED_OVER = frozenset({"training", "train", "validation", "_known", "flatten_parameters"})


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


@dataclass(frozen=True)
class Attribute:
    """A plain attribute of a layer or of the data.

    Attributes:
        path: of the layer; None for the data.
        owner: the layer or the data.
        name: of the attribute.
    """

    path: str | None
    owner: object
    name: str

    @property
    def value(self) -> Any:
        return vars(self.owner)[self.name]

    def __str__(self) -> str:
        path = "data" if self.path is None else self.path
        return f"{path}.{self.name}" if path else self.name


def attributes(module: nn.Module, data: object) -> Iterator[Attribute]:
    """The plain attributes of all layers and of the data."""
    for path, owner in (*module.named_modules(), (None, data)):
        for name in list(vars(owner)):
            if name not in PASSED_OVER:
                yield Attribute(path, owner, name)


class Watch:
    """Sees whether plain attributes that may be a state change: tensors, arrays, numbers, generators.

    A large tensor is read only once it was written to or replaced, which its count of writes tells. Of a large array
    blocks are read that lie all over it.

    Args:
        module, data: whose attributes they are.
        beat: called before each tensor and array, since reading many may take long.
    """

    def __init__(self, module: nn.Module, data: object, beat: Callable[[], None]) -> None:
        self._module, self._data, self._beat = module, data, beat
        values = [each.value for each in attributes(module, data)]
        self._large = {id(value): (value, value._version) for value in values if is_large(value)}

    def now(self) -> dict[tuple[str | None, str], tuple[Attribute, Any]]:
        """Each attribute that may be a state, and what can be compared of it, which tells one content from another."""
        found = {}
        for each in attributes(self._module, self._data):
            state = self._state_of(each.value)
            if state is not None:
                found[each.path, each.name] = each, state
        return found

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            self._beat()
        if is_large(value) and self._large.get(id(value), (None, None))[1] == value._version:
            return "as it was"
        return state_of(value)


def is_large(value: Any) -> bool:
    """Whether it is a large tensor that counts what is written to it."""
    if not isinstance(value, Tensor) or value.is_inference():
        return False
    try:
        return value.numel() * value.element_size() > LARGE_BYTES
    except RuntimeError:
        return False


def state_of(value: Any) -> Any:
    """What can be compared of a value that may be a state; None for other objects, and for what cannot be read."""
    match value:
        case bool() | int():
            return value
        case float():
            return repr(value)  # under which NaN is itself
        case Tensor():
            bits = content_if_readable(value)
            shape = None if value.is_nested else tuple(value.shape)
            return None if bits is None else (shape, str(value.dtype), bits)
        case torch.Generator():
            return content(value.get_state())
        case random.Random():
            return value.getstate()
        case np.random.Generator():
            return repr(value.bit_generator.state)
        case np.random.RandomState():
            return repr(value.get_state(legacy=False))
        case np.ndarray() if (place := place_in_file(value)) is not None:
            return value.shape, value.strides, str(value.dtype), place
        case np.ndarray() if not value.dtype.hasobject:  # the bytes of objects and strings of any length are addresses
            return value.shape, array_digest(value)
        case _:
            return None


def place_in_file(array: np.ndarray) -> tuple[str, int] | None:
    """The file that a large array maps for reading alone, and where in it the array begins; None for all others.

    Nobody can write to it through such a map, and reading blocks all over a large file is slow.
    """
    part: Any = array
    root: np.memmap | None = None
    while isinstance(part, np.ndarray):
        root = part if isinstance(part, np.memmap) else root
        part = part.base
    if array.nbytes <= LARGE_BYTES or root is None or root.mode != "r" or root.filename is None:
        return None
    return str(root.filename), root.offset + array.ctypes.data - root.ctypes.data


def array_digest(array: np.ndarray) -> bytes:
    """A digest of an array, or of LARGE_BYTES of it in blocks at equal distances if it is larger."""
    digest = hashlib.blake2b()
    array = array.view(np.ndarray)
    if array.nbytes <= LARGE_BYTES:
        digest.update(array.tobytes())
        return digest.digest()
    rows = np.moveaxis(array, int(np.argmax(array.shape)), 0)
    block = max(1, BLOCK_BYTES * len(rows) // array.nbytes)
    blocks = max(1, LARGE_BYTES * len(rows) // (array.nbytes * block))
    for start in np.linspace(0, len(rows) - block, blocks, dtype=np.int64):
        digest.update(rows[start : start + block].tobytes())
    return digest.digest()
