"""The ordered all-reduce: the sum over all shards, in tree order, on every rank.

`ShardSums` adds up what one rank computes, along the tree. An `Exchange` completes the tree over all ranks. All
exchanges give the same bits; they differ in how much they move and how often they wait.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from lockstep.workers.engine.group import Group, peer_loss
from lockstep.workers.engine.shards import Node, Placement

# Up to this many received bytes one all-gather beats two collectives on chunks (benchmarks/exchange.py).
GATHER_LIMIT_BYTES = 4 * 1024 * 1024
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


class PairExchange(Exchange):
    """Two ranks with one piece each: the total is one addition, so that a plain all-reduce is exact."""

    def total(self) -> Tensor:
        with peer_loss():
            dist.all_reduce(self.sums.rows)
        return self.sums.rows[0]


class GatherExchange(Exchange):
    """Every rank receives all pieces and adds them up in tree order."""

    def __init__(self, placement: Placement, group: Group, sums: ShardSums) -> None:
        super().__init__(placement, group, sums)
        shape = (placement.most_pieces, sums.rows.shape[1])
        self._sent = sums.rows
        if len(sums.rows) < placement.most_pieces:  # an all-gather takes the same number of rows from every rank
            self._sent = sums.rows.new_zeros(shape)
        self._received = sums.rows.new_empty(placement.world_size, *shape)
        self._rows = [list(rows)[: len(p)] for rows, p in zip(self._received, placement.pieces, strict=True)]

    def total(self) -> Tensor:
        if self._sent is not self.sums.rows:
            self._sent[: len(self.sums.rows)].copy_(self.sums.rows)
        with peer_loss():
            dist.all_gather_into_tensor(self._received.view(-1), self._sent.view(-1))
        return self.placement.total(self._rows)


class ChunkExchange(Exchange):
    """Each rank receives one chunk of every piece, adds them up in tree order, and sends its chunk of the total."""

    def __init__(self, placement: Placement, group: Group, sums: ShardSums) -> None:
        super().__init__(placement, group, sums)
        world_size, width = placement.world_size, sums.rows.shape[1]
        self._chunk = width // world_size
        self._counts = [len(pieces) for pieces in placement.pieces]
        self._sent = sums.rows.new_empty(world_size, len(sums.rows), self._chunk)
        self._received = sums.rows.new_empty(sum(self._counts), self._chunk)
        self._rows = [list(rows) for rows in torch.split(self._received, self._counts)]
        self._total = sums.rows.new_empty(width)

    def total(self) -> Tensor:
        self._sent.copy_(self.sums.rows.view(len(self.sums.rows), -1, self._chunk).transpose(0, 1))
        with peer_loss():
            dist.all_to_all_single(
                self._received.view(-1),
                self._sent.view(-1),
                [count * self._chunk for count in self._counts],
                [len(self.sums.rows) * self._chunk] * self.placement.world_size,
            )
            chunk = self.placement.total(self._rows)
            dist.all_gather_into_tensor(self._total, chunk.contiguous())
        return self._total


def padded(width: int, world_size: int) -> int:
    """The least width of a row, at least `width`, that divides into aligned chunks for every rank."""
    unit = ALIGNMENT_ELEMENTS * world_size
    return -(-width // unit) * unit


def choose_exchange(placement: Placement, group: Group, sums: ShardSums) -> Exchange:
    """The fastest exchange for this placement and size; each gives the same bits."""
    if placement.world_size == 1:
        return Exchange(placement, group, sums)
    if placement.world_size == 2 and placement.most_pieces == 1:
        return PairExchange(placement, group, sums)
    received_bytes = placement.world_size * placement.most_pieces * sums.rows.shape[1] * sums.rows.element_size()
    kind = GatherExchange if received_bytes <= GATHER_LIMIT_BYTES else ChunkExchange
    return kind(placement, group, sums)
