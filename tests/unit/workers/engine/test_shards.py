"""The fixed tree over shard numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.workers.engine.exchange.reduce import ShardSums
from lockstep.workers.engine.exchange.shards import Node, Placement, part, pieces, root, tree_sum

shard_counts = st.integers(1, 40)


@given(total=st.integers(0, 10_000), parts=st.integers(1, 64))
def test_parts_cover_everything_once_and_differ_by_at_most_one(total: int, parts: int) -> None:
    ranges = [part(total, index, parts) for index in range(parts)]
    assert [number for each in ranges for number in each] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(shards=shard_counts, data=st.data())
def test_the_pieces_of_a_rank_cover_exactly_its_shards(shards: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, shards - 1))
    owned = range(start, data.draw(st.integers(start + 1, shards)))
    covered = [
        shard
        for node in pieces(owned, shards)
        for shard in range(node.position << node.level, min((node.position + 1) << node.level, shards))
    ]
    assert covered == list(owned)


@given(shards=shard_counts, data=st.data())
def test_no_rank_sends_more_than_two_pieces_a_level(shards: int, data: st.DataObject) -> None:
    placement = Placement.deal(shards, data.draw(st.integers(1, shards)))
    assert placement.most_pieces <= max(1, 2 * (shards - 1).bit_length())


@given(shards=shard_counts, data=st.data())
def test_the_total_is_the_same_bits_however_the_shards_are_dealt(shards: int, data: st.DataObject) -> None:
    values = torch.randn(shards, 5, generator=torch.Generator().manual_seed(shards)) * 1e3 ** torch.rand(shards, 1)
    expected = tree_sum(root(shards), shards, lambda node: values[node.position].clone() if node.level == 0 else None)
    world_size = data.draw(st.integers(1, shards))
    placement = Placement.deal(shards, world_size)
    rows = []
    for rank in range(world_size):
        sums = ShardSums(placement, rank, 5, torch.float32, torch.device("cpu"))
        for shard in sums.each():
            sums.accumulator.add_(values[shard])
        for columns in (slice(3, None), slice(0, 3)):
            sums.finish(columns)
        rows.append(list(sums.rows))
    assert torch.equal(placement.total(rows), expected)


def test_a_left_to_right_sum_would_not_do() -> None:
    values = torch.tensor([1e8, 1.0, -1e8, 1.0])
    in_tree_order = tree_sum(root(4), 4, lambda node: values[node.position].clone() if node.level == 0 else None)
    assert in_tree_order != ((values[0] + values[1]) + values[2]) + values[3]


def test_three_ranks_of_eight_shards_send_five_pieces() -> None:
    assert Placement.deal(8, 3).pieces == (
        (Node(1, 0),),
        (Node(1, 1), Node(0, 4)),
        (Node(0, 5), Node(1, 3)),
    )


@pytest.mark.parametrize("world_size", [0, 5])
def test_more_ranks_than_shards_are_refused(world_size: int) -> None:
    with pytest.raises(ValueError, match="use 1 to 4 ranks"):
        Placement.deal(4, world_size)
