"""The buffers of a module, and what the shards of a step make of them.

Most never change and cost nothing: a tensor counts how often it is written to. Those that some shard has changed are
*live*. They stay where they are, but what they held before a step, and what each shard leaves in them, lies in vectors
of bytes: one call sets all of them back, and one message exchanges what the shards left behind. All ranks hold the same
buffers for live, since the length of the message follows from it; a rank that sees another one change has all of them
repeat the step.
"""

import itertools
import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lockstep.workers.engine.buffers.discovery import Kept, find, known_to_change
from lockstep.workers.engine.buffers.policies import ATTRIBUTE, COMBINE, SAME, allowed_for
from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.reduce import CACHE_LINE_BYTES
from lockstep.workers.engine.exchange.shards import Placement
from lockstep.workers.engine.tensor_memory import words

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an element in bytes."""


class Part(NamedTuple):
    """Live buffers of one policy and dtype, and where they lie in vectors of bytes.

    Attributes:
        start, stop: the bytes.
        members: the buffers.
        tensors: theirs.
        before: where in a vector lies what each of them held before the step.
        after: the same of what it is to hold.
        rows: the same of what each shard has left in it, by shard.
    """

    policy: str
    dtype: torch.dtype
    start: int
    stop: int
    members: list[Kept]
    tensors: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    rows: list[list[Tensor]]

    def of(self, values: Tensor) -> Tensor:
        """Their elements in vectors of bytes, (..., size_bytes), complex ones as pairs."""
        part = values[..., self.start : self.stop].view(self.dtype)
        return torch.view_as_real(part).flatten(-2) if self.dtype.is_complex else part


class Buffers:
    """The buffers of a module, and what the shards of a step make of them.

    Args:
        module: whose buffers they are.
        shards: number of shards of a minibatch.

    Raises:
        ModelError: a policy that is unknown or does not fit, or a tensor that cannot be kept; names it.
    """

    def __init__(self, module: nn.Module, shards: int) -> None:
        self._module, self._shards = module, shards
        self.kept = list(find(module))
        self._names = _names(module)
        self._live: list[Kept] = []
        self._still = list(self.kept)
        self._parts: list[Part] = []
        self._before = self._after = self._table = torch.empty(0, dtype=torch.uint8)
        self._is_first = True
        self._make_live([kept.name for kept in self.kept if kept.name in known_to_change(module)])

    def enter(self) -> None:
        """A generation begins; what changes is looked at closely until a step is applied.

        Raises:
            ModelError: something has changed in a way that the engine does not see, in a step that was lost.
        """
        self.check_unseen()
        self._is_first = True
        self.note()
        for kept in self._still:
            kept.before.copy_(kept.tensor)

    def note(self) -> None:
        """Note everything as it is before a step."""
        for part in self._parts:
            torch._foreach_copy_(part.before, part.tensors)
        for kept in self._still:
            if kept.tensor._version != kept.version:
                kept.before.copy_(kept.tensor)
                kept.version = kept.tensor._version

    def restore(self) -> None:
        """Set what is live to what it was before the step, so that every shard starts from the same."""
        for part in self._parts:
            torch._foreach_copy_(part.tensors, part.before)

    def undo(self, is_validation: bool = False) -> None:
        """Set everything to what it was before, whatever the shards or a validation have done.

        What only a validation changes becomes nothing else by it, and need not be exchanged.
        """
        for kept in self._live:
            if kept.is_replaced():
                kept.take_back()
        self.restore()
        for kept in self._still:
            if kept.is_touched():
                kept.is_seen = kept.is_seen or not is_validation
                kept.take_back()
                kept.tensor.data.copy_(kept.before)
                kept.version, kept.is_untraced = kept.tensor._version, False

    def break_off(self) -> None:
        """Undo a step that is not applied; in the first one of a generation also what was written without a trace."""
        self.undo()
        if self._is_first:
            for kept in self._still:
                if not equal(kept.before, kept.tensor):
                    kept.is_seen = True
                    kept.tensor.data.copy_(kept.before)

    def take_back(self) -> None:
        """Have layers hold their own tensors, with the values of what has replaced them, and nothing of autograd."""
        for kept in self.kept:
            if kept.is_replaced():
                kept.take_back()

    def drop_replacements(self) -> None:
        """Have layers hold their own tensors, as they are: what was to replace them was perhaps never computed."""
        for kept in self.kept:
            for place, key in kept.places:
                place[key] = kept.tensor

    def keep(self, shard: int) -> None:
        """Keep what a shard has left behind."""
        for part in self._parts:
            torch._foreach_copy_(part.rows[shard], part.tensors)

    def have_changed(self) -> bool:
        """Whether this rank's shards have changed what is not live; then the step must be repeated."""
        if self._is_first:
            self._check_names()
            return any(kept.is_touched() or not equal(kept.before, kept.tensor) for kept in self._still)
        return any(kept.is_touched() for kept in self._still)

    def agree(self, group: Group) -> None:
        """Hold for live what some rank holds for it or has seen to change; everything is as before the step.

        Raises:
            PeerLost: a rank left.
        """
        if not self.kept:
            return
        is_live = torch.tensor(
            [k.is_live or k.is_seen or k.is_touched() or not equal(k.before, k.tensor) for k in self.kept],
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
            for kept, *values in zip(part.members, *part.rows[:active_shards], strict=True):
                if not all(equal(value, values[0]) for value in values):
                    raise ModelError(
                        f"the shards of a minibatch left different values in {kept.name}, {part.dtype}, of which all "
                        "must make the same; say how they become one in the module, as in "
                        f'{ATTRIBUTE} = {{"{kept.name}": "{allowed_for(part.dtype)[0]}"}}; allowed: '
                        f"{', '.join(allowed_for(part.dtype))}"
                    )

    def combine(self, active_shards: int) -> None:
        """Set what is live to what the shards that ran have made of it together; the step is applied.

        What none of them has changed stays as it is, to the bit: when a buffer becomes live depends on who was lost.
        """
        self._is_first = False
        for part in self._parts:
            rows, before = part.of(self._table[:active_shards]), part.of(self._before)
            is_same = (words_of(rows) == words_of(before)).all(0)  # looked at before, since sums overwrite the rows
            combined = COMBINE[part.policy](rows, before)
            if part.policy != SAME:  # which is bits, and of dtypes that torch computes nothing with
                combined = torch.where(is_same, before, combined)
            part.of(self._after).copy_(combined)
            torch._foreach_copy_(part.tensors, part.after)

    def check_unseen(self) -> None:
        """Check that nothing has changed or come in ways that the engine does not see.

        Raises:
            ModelError: something has; names it.
        """
        self._check_names()
        for kept in self._still:
            if kept.tensor._version == kept.version and not equal(kept.before, kept.tensor):
                raise ModelError(
                    f"{kept.name} was changed in a way that leaves no trace, after the first step; write with copy_(), "
                    "mul_() and so on, not through `data` or NumPy"
                )

    def live(self) -> list[Tensor]:
        """What some shard changes."""
        return [kept.tensor for kept in self._live]

    def left_behind(self) -> Iterator[Tensor]:
        """What a shard has changed, counted or not, and what is live; to be undone."""
        for kept in self._still:
            kept.is_untraced = not kept.is_touched() and not equal(kept.before, kept.tensor)
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
        """Give the buffers of these names their places in the vectors."""
        if set(names) == {kept.name for kept in self._live}:
            return
        for kept in self.kept:
            kept.is_live = kept.name in names
        self._still = [kept for kept in self.kept if not kept.is_live]
        kind = operator.attrgetter("policy", "dtype_name")
        self._live = sorted((kept for kept in self.kept if kept.is_live), key=kind)
        device = self._live[0].tensor.device
        size = sum(map(place_bytes, self._live))
        self._before, self._after = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        self._table = torch.zeros(self._shards, size, dtype=torch.uint8, device=device)
        self._parts, stop = [], 0
        for (policy, _), group in itertools.groupby(self._live, kind):
            members, start = list(group), stop
            stop += sum(map(place_bytes, members))
            part = Part(
                policy,
                members[0].tensor.dtype,
                start,
                stop,
                members,
                [kept.tensor for kept in members],
                places(members, self._before[start:]),
                places(members, self._after[start:]),
                [places(members, row[start:]) for row in self._table],
            )
            self._parts.append(part)
            for kept, before in zip(members, part.before, strict=True):
                kept.before = before.copy_(kept.tensor)


def place_bytes(kept: Kept) -> int:
    """Bytes that a buffer takes in a vector, up to the next cache line."""
    return -(-kept.tensor.nbytes // CACHE_LINE_BYTES) * CACHE_LINE_BYTES


def places(members: list[Kept], vector: Tensor) -> list[Tensor]:
    """Where buffers lie in a vector of bytes, one after another."""
    views, start = [], 0
    for kept in members:
        view = vector[start : start + kept.tensor.nbytes].view(kept.tensor.dtype)
        views.append(view.view(kept.tensor.shape))
        start += place_bytes(kept)
    return views


def _names(module: nn.Module) -> set[str]:
    """Of all parameters and buffers, tied ones with all of theirs."""
    everything = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name for name, _ in everything}


def words_of(values: Tensor) -> Tensor:
    """The bits of each element, as an integer of its size."""
    return values.view(WORDS[values.itemsize])


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bits."""
    return torch.equal(words(one), words(other))  # as bytes it would take seven times as long
