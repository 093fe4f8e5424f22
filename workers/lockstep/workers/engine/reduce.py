"""The ordered all-reduce: the sum over all shards, in tree order, on every rank.

`ShardSums` adds up what one rank computes, along the tree. An `Exchange` completes the tree over all ranks. All
exchanges give the same bits; they differ in how much they move and how often they wait.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lockstep.workers.engine.group import Group
from lockstep.workers.engine.shards import Node, Placement

# Up to this many received bytes one wait is faster than moving less (benchmarks/exchange.py).
SWAP_LIMIT_BYTES = 2 * 1024 * 1024
# Rows start at whole cache lines: kernels may take another path, and give other bits, for unaligned data.
ALIGNMENT_ELEMENTS = 16


class ShardSums:
    """The sums over this rank's shards that it contributes to the tree.

    Autograd adds each shard's gradient to `accumulator`. Sums of two neighbours form there by themselves; larger ones
    are put together from saved halves.

    Args:
        placement: who owns which shard.
        rank: this rank.
        width: number of elements of a sum.

    Attributes:
        accumulator: where a shard adds its contribution, (width,).
        rows: the finished pieces, left to right, (pieces, width); the accumulator itself when there is only one.
    """

    def __init__(self, placement: Placement, rank: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shards = placement.shards
        self._owned = placement.owned[rank]
        self._pieces = placement.pieces[rank]
        self._halves: list[Tensor] = []
        self.accumulator = torch.zeros(width, dtype=dtype, device=device)
        self.rows = self.accumulator.view(1, width)
        if len(self._pieces) > 1:
            self.rows = torch.zeros(len(self._pieces), width, dtype=dtype, device=device)

    def each(self) -> Iterator[int]:
        """Yield each shard of this rank when the accumulator is ready for it, and put its sum in place afterwards."""
        for shard in self._owned:
            completes_pair = shard % 2 == 1 and shard - 1 in self._owned
            if not completes_pair:
                self.accumulator.zero_()
            yield shard
            waits_for_pair = shard % 2 == 0 and shard + 1 in self._owned
            if not waits_for_pair:
                self._place(Node(1, shard // 2) if completes_pair else Node(0, shard))

    def _place(self, node: Node) -> None:
        """Carry the value of `node`, which the accumulator holds, up the tree as far as this rank can."""
        while node not in self._pieces:
            parent = Node(node.level + 1, node.position // 2)
            if node.position % 2 == 1:
                self.accumulator.add_(self._halves.pop())
            elif (node.position + 1) << node.level < self._shards:
                self._halves.append(self.accumulator.clone())
                return
            node = parent
        if len(self._pieces) > 1:
            self.rows[self._pieces.index(node)].copy_(self.accumulator)


class Exchange:
    """Completes the sums of all ranks; alone there is nothing to exchange.

    Args:
        placement: who contributes what.
        group: the ranks.
        sums: this rank's contribution.
    """

    def __init__(self, placement: Placement, group: Group, sums: ShardSums) -> None:
        self.placement = placement
        self.group = group
        self.sums = sums

    def total(self) -> Tensor:
        """The sum over all shards, (width,); valid until the next shard is computed.

        Raises:
            PeerLost: a rank left.
        """
        return self.sums.rows[0]


class SwapExchange(Exchange):
    """Every rank sends its pieces to every other and adds all of them up in tree order: one wait, for small rows."""

    def __init__(self, placement: Placement, group: Group, sums: ShardSums) -> None:
        super().__init__(placement, group, sums)
        width = sums.rows.shape[1]
        self._rows = [
            sums.rows if rank == group.rank else sums.rows.new_empty(len(pieces), width)
            for rank, pieces in enumerate(placement.pieces)
        ]

    def total(self) -> Tensor:
        self.group.swap({peer: (self.sums.rows, self._rows[peer]) for peer in self.group.peers})
        return self.placement.total([list(rows) for rows in self._rows])


class ChunkExchange(Exchange):
    """Each rank adds up one chunk of all pieces in tree order and sends it to the others: two waits, for large rows."""

    def __init__(self, placement: Placement, group: Group, sums: ShardSums) -> None:
        super().__init__(placement, group, sums)
        rank, width = group.rank, sums.rows.shape[1]
        chunk = width // placement.world_size
        # By rank, this rank's pieces of the chunk which that rank adds up: a single piece is sent from where it lies,
        # and its row takes the total.
        self._is_one_piece = len(sums.rows) == 1
        shape = (placement.world_size, len(sums.rows), chunk)
        self._sent = sums.rows.view(shape) if self._is_one_piece else sums.rows.new_empty(shape)
        self._rows = [
            self._sent[rank] if peer == rank else sums.rows.new_empty(len(pieces), chunk)
            for peer, pieces in enumerate(placement.pieces)
        ]
        self._total = self._sent[:, 0] if self._is_one_piece else sums.rows.new_empty(placement.world_size, chunk)

    def total(self) -> Tensor:
        world_size, pieces, chunk = self._sent.shape
        if not self._is_one_piece:
            self._sent.copy_(self.sums.rows.view(pieces, world_size, chunk).transpose(0, 1))
        self.group.swap({peer: (self._sent[peer], self._rows[peer]) for peer in self.group.peers})
        mine = self._total[self.group.rank].copy_(self.placement.total([list(rows) for rows in self._rows]))
        self.group.swap({peer: (mine, self._total[peer]) for peer in self.group.peers})
        return self._total.view(-1)


def padded(width: int, world_size: int) -> int:
    """The least width of a row, at least `width`, that divides into aligned chunks for every rank."""
    unit = ALIGNMENT_ELEMENTS * world_size
    return -(-width // unit) * unit


def choose_exchange(placement: Placement, group: Group, sums: ShardSums) -> Exchange:
    """The fastest exchange for this placement and size; each gives the same bits."""
    if placement.world_size == 1:
        return Exchange(placement, group, sums)
    others = sum(map(len, placement.pieces)) - len(sums.rows)
    if others * sums.rows[0].nbytes <= SWAP_LIMIT_BYTES:
        return SwapExchange(placement, group, sums)
    return ChunkExchange(placement, group, sums)
