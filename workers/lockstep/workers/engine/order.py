"""The order of the examples of an epoch, and every other random choice, as functions of the seed.

Nothing here keeps state: what happens at a step can be computed without having run the steps before it. That is what
lets a job go on after a loss, on other workers, from the middle of an epoch.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

ROUNDS = 4


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
