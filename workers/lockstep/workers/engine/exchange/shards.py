"""Shards of a minibatch, who owns them, and the fixed tree that sums them.

Shards are logical: their number G is fixed by the spec. Workers are physical: any number from 1 to G of them deal the
shards among themselves. Whoever computes a shard, its sum enters the same binary tree over shard numbers at the same
place, so that the result is the same expression, evaluated in the same order, on every number of workers.

A node of the tree is named by (level, position) and covers the 2**level shards from position * 2**level, as far as
there are so many. Level 0 are the shards themselves. A node without a right child has the value of its left one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class Node(NamedTuple):
    """A node of the tree over shard numbers."""

    level: int
    position: int


def part(total: int, index: int, parts: int) -> range:
    """The `index`-th of `parts` contiguous, nearly equal parts of range(total); sizes differ by at most one.

    One rule deals examples of a minibatch to shards and shards to ranks.
    """
    return range(index * total // parts, (index + 1) * total // parts)


def root(shards: int) -> Node:
    """The node that covers all shards."""
    return Node((shards - 1).bit_length(), 0)


def pieces(owned: range, shards: int) -> tuple[Node, ...]:
    """The largest nodes that cover exactly the shards `owned`, left to right: what a rank can sum by itself."""
    nodes, start = [], owned.start
    while start < owned.stop:
        level = 0
        while (
            level < root(shards).level and start % (2 << level) == 0 and min(start + (2 << level), shards) <= owned.stop
        ):
            level += 1
        nodes.append(Node(level, start >> level))
        start = min(start + (1 << level), shards)
    return tuple(nodes)


def tree_sum(node: Node, shards: int, known: Callable[[Node], Tensor | None]) -> Tensor:
    """The value of `node`, from the values of the nodes that are `known`, which must cover it and are overwritten."""
    value = known(node)
    if value is not None:
        return value
    left, right = Node(node.level - 1, 2 * node.position), Node(node.level - 1, 2 * node.position + 1)
    if right.position << right.level >= shards:
        return tree_sum(left, shards, known)
    return tree_sum(left, shards, known).add_(tree_sum(right, shards, known))


class Placement(NamedTuple):
    """Which shards each rank computes and which sums it contributes.

    Attributes:
        shards: number of shards G.
        owned: for each rank, its contiguous range of shards.
        pieces: for each rank, the nodes that it sums by itself.
    """

    shards: int
    owned: tuple[range, ...]
    pieces: tuple[tuple[Node, ...], ...]

    @classmethod
    def deal(cls, shards: int, world_size: int) -> "Placement":
        """Deal `shards` to `world_size` ranks.

        Raises:
            ValueError: there are fewer shards than ranks.
        """
        if not 1 <= world_size <= shards:
            raise ValueError(f"{world_size} ranks cannot share {shards} shards; use 1 to {shards} ranks")
        owned = tuple(part(shards, rank, world_size) for rank in range(world_size))
        return cls(shards, owned, tuple(pieces(shard_range, shards) for shard_range in owned))

    @property
    def world_size(self) -> int:
        return len(self.owned)

    @property
    def most_pieces(self) -> int:
        """The largest number of pieces that any rank contributes."""
        return max(map(len, self.pieces))

    def total(self, rows: Sequence[Sequence[Tensor]]) -> Tensor:
        """The sum over all shards, in tree order.

        Args:
            rows: for each rank, the values of its pieces, all of one shape; they are overwritten.
        """
        values: dict[Node, Tensor] = {}
        for nodes, own in zip(self.pieces, rows, strict=True):
            values.update(zip(nodes, own, strict=True))
        return tree_sum(root(self.shards), self.shards, values.get)
