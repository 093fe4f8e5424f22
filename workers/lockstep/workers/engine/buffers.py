"""The buffers of a module, and what the shards of a step make of them.

Most never change and cost nothing: a tensor counts how often it is written to. Those that some shard has changed are
*live*: they lie in one vector of bytes, so that one copy sets all of them back before each shard, and one
message exchanges what the shards left behind. All ranks hold the same tensors for live, since the length of the message
follows from it; a rank that sees another one change has all of them repeat the step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.flat import overlaps, strides_of
from lockstep.workers.engine.group import Group
from lockstep.workers.engine.policies import ATTRIBUTE, COMBINE, MEAN, SAME, check_policy, find_policies
from lockstep.workers.engine.reduce import CACHE_LINE_BYTES
from lockstep.workers.engine.shards import Placement


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
    """

    name: str
    tensor: Tensor
    places: list[tuple[dict[str, Any], str]]
    policy: str
    before: Tensor
    version: int
    is_live: bool = False
    is_seen: bool = False

    def is_replaced(self) -> bool:
        """Whether a layer holds another tensor in its place."""
        return any(place[key] is not self.tensor for place, key in self.places)

    def is_touched(self) -> bool:
        """Whether it was replaced or written to since the last note; writes through `data` are not seen."""
        return self.tensor._version != self.version or self.is_replaced()

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


class Part(NamedTuple):
    """Live tensors of one policy and dtype, and where they lie in the vector of bytes."""

    policy: str
    dtype: torch.dtype
    start: int
    stop: int

    def of(self, values: Tensor) -> Tensor:
        """Their elements in vectors of bytes, (..., size_bytes), complex ones as pairs."""
        part = values[..., self.start : self.stop].view(self.dtype)
        return torch.view_as_real(part).flatten(-2) if self.dtype.is_complex else part


class Buffers:
    """The buffers of a module, and what the shards of a step make of them.

    Args:
        module: its live buffers become views of one vector.
        shards: number of shards of a minibatch.

    Raises:
        ModelError: a policy that is unknown or does not fit, or a tensor that cannot be kept; names it.
    """

    def __init__(self, module: nn.Module, shards: int) -> None:
        self._module, self._shards = module, shards
        self.kept = list(find(module))
        self._names = _names(module)
        self._lives_elsewhere = dict(overlaps((k.name, k.tensor) for k in self.kept))
        self._live: list[Kept] = []
        self._still = list(self.kept)
        self._parts: list[Part] = []
        self._offsets: list[int] = []
        self._values = self._before = self._table = torch.empty(0, dtype=torch.uint8)
        self._is_first = True
        known = [kept.name for kept in self.kept if kept.name in _known_to_change(module)]
        self._make_live(known)

    def enter(self) -> None:
        """A generation begins; what changes is looked at closely in its first step."""
        self._is_first = True
        self._before.copy_(self._values)
        for kept in self._still:
            kept.before.copy_(kept.tensor)
            kept.version = kept.tensor._version

    def note(self) -> None:
        """Note everything as it is before a step."""
        if self._live:
            self._before.copy_(self._values)
        for kept in self._still:
            if kept.tensor._version != kept.version:
                kept.before.copy_(kept.tensor)
                kept.version = kept.tensor._version

    def restore(self) -> None:
        """Set what is live to what it was before the step, so that every shard starts from the same."""
        if self._live:
            self._values.copy_(self._before)

    def undo(self) -> None:
        """Set everything to what it was before, whatever the shards or a validation have done."""
        for kept in self._live:
            if kept.is_replaced():
                kept.take_back()
        self.restore()
        for kept in self._still:
            if kept.is_touched():
                kept.is_seen = True
                kept.take_back()
                kept.tensor.data.copy_(kept.before)
                kept.version = kept.tensor._version

    def keep(self, shard: int) -> None:
        """Keep what a shard has left behind."""
        for kept in self._live:
            if kept.is_replaced():
                kept.take_back()
        if self._live:
            self._table[shard].copy_(self._values)

    def have_changed(self) -> bool:
        """Whether this rank's shards have changed what is not live; then the step must be repeated."""
        if self._is_first:
            self._check_names()
            self._is_first = False
            return any(kept.is_touched() or not _equal(kept.before, kept.tensor) for kept in self._still)
        return any(kept.is_touched() for kept in self._still)

    def agree(self, group: Group) -> None:
        """Hold for live what some rank holds for it or has seen to change; everything is as before the step.

        Raises:
            PeerLost: a rank left.
        """
        if not self.kept:
            return
        is_live = torch.tensor(
            [k.is_live or k.is_seen or k.is_touched() or not _equal(k.before, k.tensor) for k in self.kept],
            dtype=torch.int64,
        )
        self.undo()
        for kept in self._still:
            kept.tensor.data.copy_(kept.before)
        self._make_live([k.name for k, live in zip(self.kept, group.gather(is_live).any(0), strict=True) if live])

    def exchange(self, group: Group, placement: Placement) -> None:
        """Learn from the other ranks what their shards have left behind.

        Raises:
            PeerLost: a rank left.
        """
        if not self._live or not group.peers:
            return
        mine = placement.owned[group.rank]
        group.swap(
            {
                peer: (self._table[mine.start : mine.stop], self._table[theirs.start : theirs.stop])
                for peer, theirs in enumerate(placement.owned)
                if peer != group.rank
            }
        )

    def check_same(self, active_shards: int) -> None:
        """Check that tensors of which every shard makes the same were made the same by those that ran.

        Raises:
            ModelError: they were not; names the first.
        """
        for part in self._parts:
            if part.policy != SAME or active_shards == 1:
                continue
            rows = self._table[:active_shards, part.start : part.stop].view(torch.int64)
            if bool((rows[1:] == rows[0]).all()):
                continue
            for kept, start in zip(self._live, self._offsets, strict=True):
                values = self._table[:active_shards, start : start + kept.tensor.nbytes]
                if kept.policy == SAME and not bool((values == values[0]).all()):
                    raise ModelError(
                        f"the shards of a minibatch left different values in {kept.name}, {kept.tensor.dtype}, of "
                        "which all must make the same; say how they are combined by "
                        f'{ATTRIBUTE} = {{"{kept.name}": "sum"}}, or "max" or "min", in the module'
                    )

    def combine(self, active_shards: int) -> None:
        """Set what is live to what the shards that ran have made of it together."""
        for part in self._parts:
            rows, before = part.of(self._table[:active_shards]), part.of(self._before)
            part.of(self._values).copy_(COMBINE[part.policy](rows, before))

    def check_unseen(self) -> None:
        """Check that nothing has changed or come in ways that the engine does not see.

        Raises:
            ModelError: something has; names it.
        """
        self._check_names()
        for kept in self._still:
            if kept.tensor._version == kept.version and not _equal(kept.before, kept.tensor):
                raise ModelError(
                    f"{kept.name} was changed in a way that leaves no trace, after the first step; write with copy_(), "
                    "mul_() and so on, not through `data` or NumPy"
                )

    def left_behind(self) -> Iterator[Tensor]:
        """What a shard has changed, and what is live; to be undone."""
        for kept in self.kept:
            if kept.is_live or kept.is_touched():
                kept.take_back()
                yield kept.tensor

    def _check_names(self) -> None:
        new = _names(self._module) - self._names
        if new:
            raise ModelError(
                f"{min(new)} was made in training, so that no checkpoint could be read back; register parameters and "
                "buffers in the constructor, or in a forward pass in evaluation mode"
            )

    def _make_live(self, names: list[str]) -> None:
        """Lay the tensors of these names flat."""
        if set(names) == {kept.name for kept in self._live}:
            return
        for kept in self.kept:
            kept.is_live = kept.name in names
            if kept.is_live and kept.name in self._lives_elsewhere:
                other = self._lives_elsewhere[kept.name] or "itself"
                raise ModelError(f"the buffer {kept.name} changes and shares memory with {other}; give it its own")
        self._live = sorted((k for k in self.kept if k.is_live), key=lambda k: (k.policy, str(k.tensor.dtype), k.name))
        self._still = [kept for kept in self.kept if not kept.is_live]
        self._offsets, self._parts, end = [], [], 0
        for kept in self._live:
            start, end = end, end + -(-kept.tensor.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES
            self._offsets.append(start)
            if self._parts and self._parts[-1][:2] == (kept.policy, kept.tensor.dtype):
                self._parts[-1] = self._parts[-1]._replace(stop=end)
            else:
                self._parts.append(Part(kept.policy, kept.tensor.dtype, start, end))
        device = self._live[0].tensor.device
        values = torch.zeros(end, dtype=torch.uint8, device=device)
        for kept, start in zip(self._live, self._offsets, strict=True):
            bytes_of_it = values[start : start + kept.tensor.nbytes].view(kept.tensor.dtype)
            view = bytes_of_it.as_strided(kept.tensor.shape, strides_of(kept.tensor), bytes_of_it.storage_offset())
            kept.tensor.data = view.copy_(kept.tensor.data)
            kept.before = view
        self._values, self._before = values, values.clone()
        self._table = torch.zeros(self._shards, end, dtype=torch.uint8, device=device)


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
    if strides_of(tensor) != tensor.stride():  # expanded, or a part of another tensor
        tensor.data = torch.empty_like(tensor).copy_(tensor.data)
    policy = MEAN if tensor.dtype.is_floating_point or tensor.dtype.is_complex else SAME
    return Kept(name, tensor, [], policy, tensor.detach().clone(), tensor._version)


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}


def _known_to_change(module: nn.Module) -> set[str]:
    """Names of the buffers of batch normalisation, for which no step is repeated."""
    return {
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats and layer.training
        for name, _ in layer.named_buffers()
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same values; NaN is NaN."""
    if one.dtype.is_floating_point or one.dtype.is_complex:
        one, other = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(one, other)
