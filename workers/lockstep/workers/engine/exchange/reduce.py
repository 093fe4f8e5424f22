"""The ordered all-reduce: the sum over all shards, in tree order, on every rank.

`ShardSums` adds up what one rank computes, along the tree. An `Exchange` completes the tree over all ranks. All
exchanges give the same bits; they differ in how much they move and how often they wait.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.shards import Node, Placement

# Up to this many bytes received by any rank one wait is faster than moving less (benchmarks/exchange.py).
SWAP_LIMIT_BYTES = 2 * 1024 * 1024
# A large row is exchanged in buckets of this size: what has just come is added up while the caches hold it.
BUCKET_BYTES = 4 * 1024 * 1024
# Over NCCL each bucket is a dozen launches, and what is added up comes from the memory of the GPU in any case.
DEVICE_BUCKET_BYTES = 64 * 1024 * 1024
# Rows start at whole cache lines: kernels may take another path, and give other bits, for unaligned data.
ALIGNMENT_ELEMENTS = 16
CACHE_LINE_BYTES = 64
WHOLE = slice(None)


class ShardSums:
    """The sums over this rank's shards that it contributes to the tree.

    Autograd adds each shard's gradient to `accumulator`. Sums of two neighbours form there by themselves, unless it
    adds a gradient in several parts; larger ones are put together from saved halves.

    Args:
        placement: who owns which shard.
        rank: this rank.
        width: number of elements of a sum.

    Attributes:
        accumulator: where a shard adds its contribution, (width,); the last of the rows.
        rows: the finished pieces, left to right, (pieces, width).
        neighbours_add_up: whether the second of two neighbours may be added to the first one where that lies.
    """

    def __init__(self, placement: Placement, rank: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shards = placement.shards
        self._owned = placement.owned[rank]
        self._pieces = placement.pieces[rank]
        self._halves: list[Tensor] = []
        self.neighbours_add_up = True
        self.rows = torch.zeros(len(self._pieces), width, dtype=dtype, device=device)
        self.accumulator = self.rows[-1]

    def each(self) -> Iterator[int]:
        """Yield each shard of this rank when the accumulator is ready for it, and put its sum in place afterwards.

        What the last shard adds is left to `finish`.
        """
        self._halves.clear()
        for shard in self._owned:
            completes_pair = self.neighbours_add_up and shard % 2 == 1 and shard - 1 in self._owned
            if not completes_pair:
                self.accumulator.zero_()
            yield shard
            waits_for_pair = self.neighbours_add_up and shard % 2 == 0 and shard + 1 in self._owned
            if not waits_for_pair and shard != self._owned[-1]:
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
        self.rows[self._pieces.index(node)].copy_(self.accumulator)

    def finish(self, part: slice) -> None:
        """Put a part of the last piece in place, to which the last shard has added everything."""
        for half in reversed(self._halves):
            self.accumulator[part].add_(half[part])


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

    def before_last(self) -> None:
        """The gradients of this rank's last shard are computed next."""

    def total(self) -> Tensor:
        """The sum over all shards, (width,); valid until the next shard is computed.

        Raises:
            PeerLost: a rank left.
        """
        self.sums.finish(WHOLE)
        return self.sums.rows[0]

    def close(self) -> None:
        """Give up what is under way; nothing is exchanged after it."""


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
        self.sums.finish(WHOLE)
        self.group.swap({peer: (self.sums.rows, self._rows[peer]) for peer in self.group.peers})
        return self.placement.total([list(rows) for rows in self._rows])


class ChunkExchange(Exchange):
    """Bucket by bucket, each rank adds up one chunk in tree order and sends it to the others: for large rows.

    The total takes the place of the first piece, bucket by bucket, as soon as that is sent.

    Args:
        bucket_bytes: size of a bucket of one piece.

    Attributes:
        buckets: the parts of a row, from its end, as a backward pass gets to them.
    """

    def __init__(self, placement: Placement, group: Group, sums: ShardSums, bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(placement, group, sums)
        pieces, width = sums.rows.shape
        bucket = padded(min(width, bucket_bytes // sums.rows.element_size()), placement.world_size, sums.rows.dtype)
        self.buckets = [slice(max(0, end - bucket), end) for end in range(width, 0, -bucket)]
        # A single piece is sent from where it lies.
        self._sent = None if pieces == 1 else sums.rows.new_empty(pieces * bucket)
        self._counts = [len(nodes) for nodes in placement.pieces]
        self._received = sums.rows.new_empty(sum(self._counts) * (bucket // placement.world_size))

    def total(self) -> Tensor:
        for bucket in self.buckets:
            self.complete(bucket)
        return self.sums.rows[0]

    def complete(self, bucket: slice) -> None:
        """Put the sum over all shards of a bucket into the total."""
        self.sums.finish(bucket)
        rank, world_size = self.group.rank, self.placement.world_size
        rows = self.sums.rows[:, bucket]
        total = rows[0].view(world_size, -1)
        pieces, chunk = len(rows), total.shape[1]
        sent = rows.view(pieces, world_size, chunk).transpose(0, 1)
        if self._sent is not None:
            sent = self._sent[: sent.numel()].view(sent.shape).copy_(sent)
        sizes = [count * chunk for count in self._counts]
        received = torch.split(self._received[: sum(sizes)], sizes)
        self.group.all_to_all(sent.view(world_size, -1), received)
        values = [part.view(-1, chunk) for part in received]
        values[rank] = sent[rank]
        total[rank].copy_(self.placement.total([list(value) for value in values]))
        self.group.all_gather(total)


def padded(width: int, world_size: int = 1, dtype: torch.dtype = torch.float32) -> int:
    """The least width of a row, at least `width`, that divides into aligned chunks for every rank."""
    unit = max(ALIGNMENT_ELEMENTS, CACHE_LINE_BYTES // dtype.itemsize) * world_size
    return -(-width // unit) * unit


def is_small(placement: Placement, row_bytes: int) -> bool:
    """Whether one wait is faster than moving less: the same answer on every rank, or their streams would not match."""
    pieces = [len(nodes) for nodes in placement.pieces]
    most_received = sum(pieces) - min(pieces)
    return most_received * row_bytes <= SWAP_LIMIT_BYTES
