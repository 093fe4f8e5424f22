"""Looks whether a module gives the same bits for the same shard, whatever was computed before it, on every rank.

One curve rests on that: who computes a shard, and after which others, depends on the number of workers. A module that
keeps a state which the engine does not know would train to other bits on every number of them, and nothing would be
seen. So, before a process takes its first step, every rank computes the same shards in the same order: a batch of the
validation, the first shard of a minibatch, another one, the first one again, the batch again. What is computed twice
must have the same bits, on every rank, and must leave everything as it was.

It leaves parameters, buffers and generators as they are, so that a job has the same digests with it and without.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lockstep.workers.engine.audit.attributes import GENERATORS, Attribute, Watch
from lockstep.workers.engine.audit.snapshot import (
    Registered,
    content,
    content_if_readable,
    joined,
    registered,
)
from lockstep.workers.engine.errors import NotDeterministic
from lockstep.workers.engine.exchange.shards import part
from lockstep.workers.engine.listener import Activity
from lockstep.workers.engine.stepper import Stepper

START, ALWAYS, OFF = "start", "always", "off"
AUDITS = (START, ALWAYS, OFF)
WORDS_BYTES = 2_000
FINDINGS_SHOWN = 5

BUFFER_HINT = (
    "register it with register_buffer in the constructor and change it in place: every shard then starts from the same "
    "value, and what the shards have made of it becomes one. What belongs to single examples cannot be carried from "
    "one minibatch to the next"
)
NUMBER_HINT = (
    'each worker would count its own calls; in a buffer, self.register_buffer("{name}", torch.zeros((), '
    "dtype={dtype})) in the constructor, it counts minibatches with the same code; if nothing that is trained "
    "depends on it, leave it out or keep it outside of the model"
)
STATE_HINT = (
    "each worker would have its own, of its own shards; keep what is computed with in buffers (register_buffer); if "
    "nothing that is trained depends on it, leave it out"
)
DATA_HINT = (
    "each worker would have its own; make each example from what was read and from torch's generator alone; if nothing "
    "that is trained depends on it, leave it out or keep it outside of the data"
)
GENERATOR_HINT = (
    "draw from torch's own generator, from `random` or from numpy.random, which are seeded for each shard, without a "
    "generator of your own"
)
UNKNOWN_HINT = (
    "look there for a generator of your own, os.urandom, the time, or a state that the engine does not know; "
    "draw from torch's own generator, and keep state in buffers (register_buffer)"
)
RANK_HINT = (
    "look in the model and the data for what differs between workers: a rank or host name, an environment variable, a "
    "file, the time"
)


class Audit:
    """Computes the same shards on every rank, and compares.

    Args:
        stepper: computes them; it has entered a group.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper, self._module, self._model = stepper, stepper.module, stepper.model

    def run(self, at_step: int, of_step: int) -> None:
        """Compute shards of the minibatch of step `of_step` and a batch of the validation, before step `at_step`.

        Raises:
            NotDeterministic: something gave other bits than before, or than on another rank; raised on every rank.
            PeerLost: a rank left.
        """
        self._at_step, self._of_step = at_step, of_step
        self._stepper.buffers.note()
        try:
            found, bits = self._look()
        finally:
            self._stepper.buffers.undo()
            self._stepper.sums.accumulator.zero_()
            self._stepper.is_spoilt = False
            self._stepper.modes.train()
        self._compare(found, bits)

    def _look(self) -> tuple[list[str], list[int]]:
        """What is found, in words, and the bits that every rank must have computed."""
        watch = Watch(self._module, self._stepper.data, self._beat)
        before = registered(self._module, self._beat)
        validated = self._validate()
        found = changes(before, registered(self._module, self._beat), "validation")
        trained = self._train()
        then = watch.now()
        self._train_another()
        again = self._train()
        now = watch.now()
        found += changes(before, registered(self._module, self._beat), "training")
        found += [
            words_of(attribute) for key, (attribute, state) in now.items() if key in then and state != then[key][1]
        ]
        if not found and again != trained:
            found.append(self._find(self._train, self._train_another, "training"))
        if not found and self._validate() != validated:
            found.append(self._find(self._validate, self._train, "validation"))
        return list(dict.fromkeys(found)), [trained, validated]

    def _beat(self) -> None:
        """A sign of life, while what is large is read."""
        self._stepper.listener.entered(Activity.COMPUTE, self._at_step)

    def _train(self) -> int:
        """Bits of the loss, the gradient and the changes of buffers of the first shard."""
        return self._train_shard_0_of(self._of_step)

    def _train_another(self) -> int:
        """The same of as many other examples: those at the same place of the next epoch."""
        return self._train_shard_0_of(self._of_step + self._stepper.steps_per_epoch)

    def _train_shard_0_of(self, step: int) -> int:
        stepper, row = self._stepper, self._stepper.sums.accumulator
        if not self._module.training:
            stepper.modes.train()
        self._beat()
        row.zero_()
        stepper.compute_shard(step, 0, stepper.minibatches.indices(stepper.minibatches.at(step), 0))
        sums = [row[: stepper.gradient_part.stop]] + ([] if stepper.wide is None else [stepper.wide[0]])
        bits = joined(map(content, (*sums, *stepper.buffers.left_behind())))
        if stepper.wide is not None:
            stepper.wide.zero_()
        stepper.buffers.undo()
        return bits

    @torch.no_grad()
    def _validate(self) -> int:
        """Bits of the sums over the first batch of the first shard of the validation."""
        stepper = self._stepper
        size, shards = len(stepper.validation_set), stepper.settings.shards
        shard, examples = next((n, part(size, n, shards)) for n in range(shards) if part(size, n, shards))
        stepper.seed("validation", self._of_step, shard)
        self._module.eval()
        sums = stepper.validation.sums(examples[: stepper.settings.batch_size], self._at_step)
        stepper.buffers.undo()
        return content(sums)

    def _find(self, compute: Callable[[], int], compute_another: Callable[[], int], kind: str) -> str:
        """Where what is computed a second time differs, in words."""
        with recording(self._module) as first:
            compute()
        compute_another()
        with recording(self._module) as second:
            compute()
        what = "validation" if kind == "validation" else "a shard"
        return f"{first_difference(first, second)} when {what} was computed again, from the same state; {UNKNOWN_HINT}"

    def _compare(self, found: list[str], bits: list[int]) -> None:
        """Tell all ranks what was found, and compare what they have computed."""
        group = self._stepper.group
        self._stepper.listener.entered(Activity.EXCHANGE, self._at_step)
        table = group.gather(torch.tensor([len(found), *map(_signed, bits)]))
        if table[:, 0].any():
            words = "; also: ".join(found[:FINDINGS_SHOWN]).encode()[:WORDS_BYTES]
            mine = torch.zeros(WORDS_BYTES, dtype=torch.uint8)
            mine[: len(words)] = torch.tensor(list(words), dtype=torch.uint8)
            rank = int(table[:, 0].nonzero()[0])
            told = bytes(group.gather(mine)[rank].tolist()).rstrip(b"\0").decode(errors="ignore")
            raise NotDeterministic(told)
        others = [rank for rank in range(group.world_size) if not torch.equal(table[rank], table[0])]
        if others:
            kind = "training" if (table[others, 1] != table[0, 1]).any() else "validation"
            ranks = f"rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
            raise NotDeterministic(
                f"{type(self._module).__name__} gave other bits on {ranks} than on rank 0 in {kind}, for the same "
                f"examples, state and seed; {RANK_HINT}"
            )


def changes(before: dict[str, Registered], now: dict[str, Registered], kind: str) -> list[str]:
    """How parameters and buffers differ that `kind`, "training" or "validation", should have left alone, in words."""
    found = [
        f"{name} was registered while the model ran, after training had begun; register it in the constructor"
        for name in now
        if name not in before
    ]
    for name, old in before.items():
        new = now.get(name)
        is_parameter = isinstance(old.tensor, nn.Parameter)
        noun = "parameter" if is_parameter else "buffer"
        if new is None or new.tensor is not old.tensor:
            found.append(
                f"the {noun} {name} was replaced by another tensor in {kind}, which the engine does not know; change "
                "it in place, as in self.mean.mul_(0.9).add_(0.1 * mean)"
            )
        elif new.place != old.place:
            found.append(f"the {noun} {name} was moved to other memory in {kind}; do not set its `data`")
        elif new.content != old.content and is_parameter:
            found.append(
                f"the parameter {name} was changed in {kind}, by forward or loss, which only the optimizer may; "
                "compute with a changed copy, or make it a buffer (register_buffer)"
            )
        elif new.content != old.content:
            found.append(
                f"the buffer {name} was changed in {kind} in a way that leaves no trace; write with copy_(), mul_() "
                "and so on, not through `data` or NumPy"
            )
    return found


def words_of(attribute: Attribute) -> str:
    """What to tell of an attribute that was not the same after the same shard."""
    where, is_layers = attribute.path, not attribute.is_datas
    match attribute.value:
        case Tensor():
            hint = BUFFER_HINT if is_layers else DATA_HINT
            return f"{where} is a tensor that is no buffer, and was another one when a shard was computed again; {hint}"
        case bool() | int() | float() as number:
            dtype = "torch.float32" if isinstance(number, float) else "torch.int64"
            hint = NUMBER_HINT.format(name=attribute.name, dtype=dtype) if is_layers else DATA_HINT
            return f"{where} is a plain number, and was another one when a shard was computed again; {hint}"
        case np.ndarray():
            hint = BUFFER_HINT if is_layers else DATA_HINT
            return f"{where} is a NumPy array, and held other values when a shard was computed again; {hint}"
        case generator if isinstance(generator, GENERATORS):
            return f"{where} is a {type(generator).__name__} of its own, which was drawn from; {GENERATOR_HINT}"
        case other:
            hint = STATE_HINT if is_layers else DATA_HINT
            return (
                f"{where} is a {type(other).__name__}, and held something else when a shard was computed again; {hint}"
            )


@dataclass(frozen=True)
class Call:
    """A layer that was called: its path, its kind, and the bits that came in and went out."""

    path: str
    kind: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


@contextlib.contextmanager
def recording(module: nn.Module) -> Iterator[list[Call]]:
    """Collects the calls of layers, in the order in which they end."""
    paths = {id(layer): path for path, layer in module.named_modules()}
    calls: list[Call] = []

    def note(layer: nn.Module, inputs: Any, outputs: Any) -> None:
        if id(layer) in paths:
            calls.append(Call(paths[id(layer)], type(layer).__name__, _contents(inputs), _contents(outputs)))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def first_difference(first: list[Call], second: list[Call]) -> str:
    """The innermost layer that gave other outputs for the same inputs, in words."""
    for one, other in zip(first, second, strict=False):
        if one.path == other.path and one.outputs != other.outputs and one.inputs == other.inputs:
            return f"{one.path or 'forward'} ({one.kind}) gave other bits"
    if first and second and first[-1].inputs != second[-1].inputs:
        return "the data (transform) gave other bits"
    return "the loss or its gradient had other bits"


def _contents(values: Any) -> tuple[int | None, ...]:
    return tuple(content_if_readable(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
