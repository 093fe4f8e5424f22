"""Where a module holds its buffers, and by which policies they are combined."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.workers.engine.buffers.policies import ATTRIBUTE, MEAN, SAME, check_policy, find_policies
from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.tensor_memory import dimensions


@dataclass(eq=False)
class Kept:
    """A buffer, and how it is combined.

    Attributes:
        name: as `named_buffers` has it.
        tensor: the tensor; it stays the same object.
        places: the dictionaries of layers that hold it, and under which name.
        policy: how what several shards leave behind becomes one.
        before: what it held before the step.
        version: how often it had been written to when `before` was noted.
        is_live: whether some shard of some rank has changed it.
        is_seen: whether this rank has seen it change.
        is_untraced: whether it was seen to change without being counted, as `functional.batch_norm` changes what it is
            given.
    """

    name: str
    tensor: Tensor
    places: list[tuple[dict[str, Any], str]]
    policy: str
    before: Tensor
    version: int
    is_live: bool = False
    is_seen: bool = False
    is_untraced: bool = False

    @property
    def dtype_name(self) -> str:
        return str(self.tensor.dtype)

    def is_replaced(self) -> bool:
        """Whether a layer holds another tensor in its place."""
        return any(place[key] is not self.tensor for place, key in self.places)

    def is_touched(self) -> bool:
        """Whether it was replaced or written to since the last note; writes that are not counted only if looked for."""
        return self.tensor._version != self.version or self.is_untraced or self.is_replaced()

    def take_back(self) -> None:
        """Have the layers hold the tensor again, with the values of what had taken its place."""
        for place, key in self.places:
            other = place[key]
            if other is self.tensor:
                continue
            if not isinstance(other, Tensor) or (other.shape, other.dtype) != (self.tensor.shape, self.tensor.dtype):
                shown = f"{other.dtype} {list(other.shape)}" if isinstance(other, Tensor) else repr(other)
                raise ModelError(
                    f"the buffer {self.name} was replaced by {shown}, but is {self.tensor.dtype} "
                    f"{list(self.tensor.shape)}; a buffer keeps its shape and dtype"
                )
            with torch.no_grad():
                self.tensor.copy_(other)
            place[key] = self.tensor


def find(module: nn.Module) -> Iterator[Kept]:
    """All buffers of a module, with their policies.

    Raises:
        ModelError: see `Buffers`.
    """
    policies = find_policies(module)
    found: dict[int, Kept] = {}
    names: set[str] = set()
    for path, layer in module.named_modules(remove_duplicate=False):
        for key, tensor in layer._buffers.items():
            if tensor is None:
                continue
            name = f"{path}.{key}" if path else key
            names.add(name)
            if id(tensor) not in found:
                own = keep(name, tensor)
                layer._buffers[key] = own.tensor
                found[id(tensor)] = found[id(own.tensor)] = own
            kept = found[id(tensor)]
            if all(place is not layer._buffers or other != key for place, other in kept.places):
                kept.places.append((layer._buffers, key))
            kept.policy = policies.get(name, kept.policy)
    unknown = [name for name in policies if name not in names]
    if unknown:
        raise ModelError(f"{ATTRIBUTE} names {unknown[0]}, which is no buffer; those are: {', '.join(sorted(names))}")
    for kept in dict.fromkeys(found.values()):
        check_policy(kept.name, kept.tensor.dtype, kept.policy)
        yield kept


def keep(name: str, tensor: Tensor) -> Kept:
    """A tensor with the default policy: floats are averaged, of all else every shard must make the same."""
    if tensor.layout != torch.strided:
        raise ModelError(f"{name} is {tensor.layout}; buffers must be dense")
    if tensor.is_inference():  # has no count of what is written to it
        tensor = tensor.clone()
    if any(stride == 0 and size > 1 for size, stride in dimensions(tensor)):  # expanded: nothing can be written to it
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    policy = MEAN if tensor.dtype.is_floating_point or tensor.dtype.is_complex else SAME
    return Kept(name, tensor, [], policy, tensor.detach().clone(), tensor._version)


def known_to_change(module: nn.Module) -> set[str]:
    """Names of the buffers of batch normalisation, for which no step is repeated."""
    return {
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats and layer.training
        for name, _ in layer.named_buffers()
    }
