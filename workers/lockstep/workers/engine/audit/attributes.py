"""What a model, its data and their code hold beside parameters and buffers, to see later what has changed."""

import hashlib
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lockstep.workers.engine.audit.snapshot import content, content_if_readable

LARGE_BYTES = 64 << 20
"""Above this size attributes are not read as a whole, which data of many gigabytes would take minutes for."""
BLOCK_BYTES = 64 << 10
MOST_READ = 2_000
"""How many values are looked at in one attribute that holds others."""
DEEPEST = 4
"""How deep they are looked for."""
LONGEST_TEXT = 1_000
# What torch and the data classes keep for themselves.
PASSED_OVER = frozenset(vars(nn.Module())) | {"train", "validation", "_known", "flatten_parameters"}
MAY_BE_STATES = (int, float, list, dict, set, deque, itertools.count, Tensor, np.ndarray)
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
Key = tuple[int, str]


@dataclass(frozen=True)
class Attribute:
    """A plain attribute of a layer, of the data, or of the code of either.

    Attributes:
        path: in words, as a person would look for it.
        owner: the layer, the data, a class of theirs, or the Python module of that class.
        name: of the attribute.
        is_datas: whether it is the data's, and not a layer's.
    """

    path: str
    owner: object
    name: str
    is_datas: bool

    @property
    def key(self) -> Key:
        return id(self.owner), self.name

    @property
    def value(self) -> Any:
        return vars(self.owner).get(self.name)


def attributes(module: nn.Module, data: object) -> Iterator[Attribute]:
    """The plain attributes of all layers and of the data, those of their classes, and the variables of their code.

    Of classes and of code only those that come from where the class of the module or of the data comes from: what
    libraries keep is theirs.
    """
    own = own_packages(module, data)
    seen: set[object] = set()
    for path, owner in (*module.named_modules(), ("data", data)):
        is_datas = owner is data
        for name in list(vars(owner)):
            if name not in PASSED_OVER:
                yield Attribute(f"{path}.{name} of {type(owner).__name__}".lstrip("."), owner, name, is_datas)
        for kind in type(owner).__mro__:
            if kind in seen or package_of(kind) not in own:
                continue
            seen.add(kind)
            yield from variables(kind, f"the class attribute {kind.__name__}", is_datas)
            code = sys.modules.get(kind.__module__)
            if code is not None and code not in seen:
                seen.add(code)
                yield from variables(code, f"the global variable {code.__name__}", is_datas)


def variables(owner: type | ModuleType, path: str, is_datas: bool) -> Iterator[Attribute]:
    """Those of a class or of a module of code that may be a state."""
    for name, value in list(vars(owner).items()):
        if not name.startswith("__") and isinstance(value, MAY_BE_STATES + GENERATORS):
            yield Attribute(f"{path}.{name}", owner, name, is_datas)


def own_packages(module: nn.Module, data: object) -> set[str]:
    """The outermost packages from which a user's module and data come."""
    return {package_of(type(each)) for each in (module, data)} - {"lockstep", "torch"}


def package_of(kind: type) -> str:
    """The outermost package that a class comes from."""
    return kind.__module__.partition(".")[0]


class Watch:
    """Sees whether plain attributes that may be a state change: tensors, arrays, numbers, generators, what holds them.

    A large tensor is read only once it was written to or replaced, which its count of writes tells. Of a large array
    blocks are read that lie all over it. Of a list, a dict or an object so many values are looked at, and so many bytes
    of tensors and arrays read, that it takes no more than some milliseconds.

    Args:
        module, data: whose attributes they are.
        beat: called before each tensor and array, since reading many may take long.
    """

    def __init__(self, module: nn.Module, data: object, beat: Callable[[], None]) -> None:
        self._module, self._data, self._beat = module, data, beat
        values = [each.value for each in attributes(module, data)]
        own = own_packages(module, data)
        self._is_own = lambda value: package_of(type(value)) in own
        self._large = {id(value): (value, value._version) for value in values if is_large(value)}

    def now(self) -> dict[Key, tuple[Attribute, Any]]:
        """Each attribute that may be a state, and what can be compared of it, which tells one content from another."""
        found = {}
        for each in attributes(self._module, self._data):
            state = self._state_of(each.value)
            if state is not None:
                found[each.key] = each, state
        return found

    def _state_of(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            self._beat()
        if is_large(value) and self._large.get(id(value), (None, None))[1] == value._version:
            return "as it was"
        return States(self._is_own).of(value)


def is_large(value: Any) -> bool:
    """Whether it is a large tensor that counts what is written to it."""
    return isinstance(value, Tensor) and not value.is_inference() and bytes_of(value) > LARGE_BYTES


class States:
    """What can be compared of values; None for what is no state, and for what cannot be read.

    Args:
        is_own: whether an object is of a class of the user's, whose attributes may be a state.
    """

    def __init__(self, is_own: Callable[[object], bool]) -> None:
        self._is_own = is_own
        self._left, self._bytes_left = MOST_READ, LARGE_BYTES

    def of(self, value: Any, depth: int = 0) -> Any:
        """What can be compared of a value, `depth` containers inside of an attribute."""
        match value:
            case bool() | int():
                return value
            case float():
                return repr(value)  # under which NaN is itself
            case Tensor() | np.ndarray():
                return self._of_numbers(value, depth)
            case torch.Generator():
                return content(value.get_state())
            case random.Random():
                return value.getstate()
            case np.random.Generator():
                return repr(value.bit_generator.state)
            case np.random.RandomState():
                return repr(value.get_state(legacy=False))
            case itertools.count():
                return repr(value)
            case str() | bytes() if depth and len(value) <= LONGEST_TEXT:
                return value
            case dict() | list() | tuple() | deque() | set() | frozenset():
                return self._of_container(value, depth)
            case nn.Module() | ModuleType() | type():
                return None
            case _ if self._is_own(value) and hasattr(value, "__dict__"):
                return self._of_container(vars(value), depth)
            case _:
                return None

    def _of_container(self, values: Any, depth: int) -> Any:
        if depth == DEEPEST:
            return len(values)
        match values:
            case dict():
                items = list(values.values())
            case set() | frozenset():
                items = []
            case _:
                items = list(values)
        most = max(self._left, 0)
        looked_at = items if len(items) <= most else items[: most // 2] + items[len(items) - (most - most // 2) :]
        self._left -= len(looked_at)
        return len(values), tuple(self.of(item, depth + 1) for item in looked_at)

    def _of_numbers(self, value: Tensor | np.ndarray, depth: int) -> Any:
        if depth:
            self._bytes_left -= value.nbytes if isinstance(value, np.ndarray) else bytes_of(value)
            if self._bytes_left < 0:
                return str(value.dtype)
        if isinstance(value, Tensor):
            bits = content_if_readable(value)
            shape = None if value.is_nested else tuple(value.shape)
            return None if bits is None else (shape, str(value.dtype), bits)
        if (place := place_in_file(value)) is not None:
            return value.shape, value.strides, str(value.dtype), place
        if value.dtype.hasobject:  # the bytes of objects and strings of any length are addresses
            return None
        return value.shape, array_digest(value)


def bytes_of(tensor: Tensor) -> int:
    """The size of a tensor, as far as it tells."""
    try:
        return tensor.numel() * tensor.element_size()
    except RuntimeError:
        return 0


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
