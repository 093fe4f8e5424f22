"""The order of the examples of an epoch, and every other random choice, as functions of the seed.

Nothing here keeps state: what happens at a step can be computed without having run the steps before it. That is what
lets a job go on after a loss, on other workers, from the middle of an epoch.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lockstep.workers.engine.exchange.shards import part
from lockstep.workers.engine.precision import Precision

ROUNDS = 4
# Minibatches whose order is computed at once: enough to make the work per minibatch vanish.
ORDER_AHEAD = 64


@dataclass(frozen=True)
class Settings:
    """What a step depends on beside module, data and optimizer; see `Trainer`."""

    batch_size: int
    shards: int
    seed: int
    gradient_clip_norm: float | None
    precision: Precision


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts`, far from the seeds of other parts."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class EpochOrder:
    """A keyed pseudo-random permutation of range(size), computed by index.

    It is a bijection on k-bit numbers (2**k >= size), made of rounds that are each a bijection: add a key, multiply by
    an odd key, exchange high and low bits by xor-shift. Numbers beyond `size` are sent through again ("cycle walking")
    until they land inside, which keeps it a bijection on range(size). There is no table, so an epoch of a billion
    examples costs no memory.

    Args:
        size: number of examples.
        seed: the job's seed.
        epoch: number of the epoch, from 0.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self.bits = max(2, (size - 1).bit_length())
        words = np.frombuffer(
            hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16 * ROUNDS).digest(), dtype=np.uint64
        )
        self._mask = np.uint64((1 << self.bits) - 1)
        self._shift = np.uint64((self.bits + 1) // 2)
        self._add = words[0::2]
        self._multiply = words[1::2] | np.uint64(1)

    def _mix(self, numbers: np.ndarray) -> np.ndarray:
        for add, multiply in zip(self._add, self._multiply, strict=True):
            numbers = (numbers + add) * multiply & self._mask
            numbers ^= numbers >> self._shift
        return numbers

    def __getitem__(self, positions: slice) -> Tensor:
        """The examples at `positions` of the epoch, int64, (stop - start,)."""
        numbers = self._mix(np.arange(positions.start, positions.stop, dtype=np.uint64))
        outside = np.flatnonzero(numbers >= self.size)
        while len(outside):
            numbers[outside] = again = self._mix(numbers[outside])
            outside = outside[again >= self.size]
        return torch.from_numpy(numbers.view(np.int64))


class Minibatch(NamedTuple):
    """The examples of a step.

    Attributes:
        epoch: the epoch that they belong to, from 0.
        position: place of the first one in the order of the epoch.
        examples: their number.
        active_shards: number of shards that get some.
    """

    epoch: int
    position: int
    examples: int
    active_shards: int


class Minibatches:
    """Which examples each shard of each step has.

    Args:
        size: number of examples.
        settings: of the run.
        fewest: the least number of examples that a shard may have.
        device: where their numbers are wanted.

    Attributes:
        per_epoch: minibatches of an epoch; the last one may be smaller.
    """

    def __init__(self, size: int, settings: Settings, fewest: int, device: torch.device) -> None:
        self._size, self._settings, self._fewest, self._device = size, settings, fewest, device
        self.per_epoch = math.ceil(size / settings.batch_size)
        self._known: tuple[int, int, Tensor] | None = None

    def at(self, step: int) -> Minibatch:
        """That of a step, from 1."""
        epoch, batch = divmod(step - 1, self.per_epoch)
        position = batch * self._settings.batch_size
        examples = min(self._settings.batch_size, self._size - position)
        return Minibatch(epoch, position, examples, max(1, min(self._settings.shards, examples // self._fewest)))

    def indices(self, minibatch: Minibatch, shard: int) -> Tensor:
        """Examples of a shard that gets some, int64, on the device."""
        ahead = ORDER_AHEAD * self._settings.batch_size
        start = minibatch.position // ahead * ahead
        if self._known is None or self._known[:2] != (minibatch.epoch, start):
            order = EpochOrder(self._size, self._settings.seed, minibatch.epoch)
            self._known = minibatch.epoch, start, order[start : min(start + ahead, order.size)].to(self._device)
        first, own = minibatch.position - start, part(minibatch.examples, shard, minibatch.active_shards)
        return self._known[2][first + own.start : first + own.stop]
