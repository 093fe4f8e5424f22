"""Which exchange is chosen."""

import torch
from torch import nn

from lockstep.workers.engine import Group
from lockstep.workers.engine.exchange.overlap import OverlappedExchange, choose_exchange
from lockstep.workers.engine.exchange.reduce import SWAP_LIMIT_BYTES, ChunkExchange, ShardSums, SwapExchange, padded
from lockstep.workers.engine.exchange.shards import Placement
from lockstep.workers.engine.flat_model import FlatModel

MOST_SHARDS = 16


def chosen(placement: Placement, model: FlatModel, width: int) -> set[type]:
    """What the ranks choose for a row of this width; nothing of the row is allocated."""
    kinds = set()
    for rank in range(placement.world_size):
        sums = ShardSums(placement, rank, width, torch.float32, torch.device("meta"))
        exchange = choose_exchange(placement, Group(rank, placement.world_size), sums, model, front=16)
        exchange.close()
        kinds.add(type(exchange))
    return kinds


def test_all_ranks_choose_the_same_exchange() -> None:
    model = FlatModel(nn.Linear(2, 2))
    seen = set()
    for shards in range(2, MOST_SHARDS + 1):
        for world_size in range(2, shards + 1):
            placement = Placement.deal(shards, world_size)
            most = sum(map(len, placement.pieces))
            # Just below and just above where a rank that receives this many pieces would change its mind.
            limits = [SWAP_LIMIT_BYTES // 4 // received for received in range(max(1, most - 8), most + 1)]
            for width in {padded(limit + change, world_size) for limit in limits for change in (-500, 500)}:
                kinds = chosen(placement, model, width)
                assert len(kinds) == 1, (shards, world_size, width)
                seen |= kinds
    assert seen == {SwapExchange, OverlappedExchange}


def numbers_held(*owners: object) -> int:
    """How many numbers lie in the tensors that these hold as attributes, each memory once."""
    tensors = [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // 4 for tensor in tensors}
    return sum(storages.values())


def test_a_rank_holds_a_row_for_each_of_its_sums_and_a_bucket_from_each_rank() -> None:
    width, bucket = padded(1_000_000, 4), padded(10_000, 4)
    for shards, rows in ((4, 1), (8, 1), (7, 2)):
        placement = Placement.deal(shards, 4)
        sums = ShardSums(placement, 1, width, torch.float32, torch.device("cpu"))
        exchange = ChunkExchange(placement, Group(1, 4), sums, bucket_bytes=4 * bucket)
        received = sum(map(len, placement.pieces)) * bucket // 4
        sent = rows * bucket if rows > 1 else 0
        assert len(placement.pieces[1]) == rows
        assert numbers_held(sums, exchange) == rows * width + received + sent
