"""Ranks whose tensors travel through host memory that is kept for them, as those of ranks do that share a GPU."""

from typing import Any

import pytest
import torch

from lockstep.workers.engine import Group
from lockstep.workers.engine.exchange.staging import Staging
from tests.distributed.test_one_curve import DIGITS, spec_of, train_spec
from tests.distributed.test_overlap import Deep, train
from tests.distributed.test_ranks_together import die, train_until

WAYS = ("auto", "host")


@pytest.mark.parametrize("shards", [4, 7])
def test_small_rows_give_the_same_bits_through_host_memory(ranks: Any, shards: int) -> None:
    spec = spec_of({"mlp": {"hidden_units": [64, 32], "activation": "relu", "dropout": [0.5, 0.2]}}, DIGITS)
    spec["resources"]["shards"] = shards
    seen = [curve for via in WAYS for size in (1, 2, 3, 4) for curve in ranks.run(size, train_spec, spec, via=via)]
    assert seen[0][1]
    assert all(curve == seen[0] for curve in seen)


def test_buckets_give_the_same_bits_through_host_memory_while_others_are_computed(ranks: Any) -> None:
    seen = [result for via in WAYS for size in (1, 2, 3, 4) for result in ranks.run(size, train, Deep, 4, via=via)]
    assert all(result[:2] == seen[0][:2] for result in seen)
    for _, _, begun in ranks.run(2, train, Deep, 4, via="host"):
        assert all(count >= 2 for count in begun)


def test_the_others_notice_at_once_when_a_rank_is_killed(ranks: Any) -> None:
    outcomes = ranks.outcomes(3, train_until, die, 1, via="host")
    assert outcomes[1] == (None, "died")
    for value, failure in (outcomes[0], outcomes[2]):
        assert failure is None
        assert value[0].startswith("PeerLost: worker ")


def swap_sizes(group: Group) -> list[tuple[int, int]]:
    """Swap with every peer in several sizes and types; returns the memory that was kept for it."""
    staging = group._staging
    assert isinstance(staging, Staging)
    seen = []
    for dtype, size in ((torch.float32, 5), (torch.int64, 0), (torch.bfloat16, 1000), (torch.float64, 33)):
        mine = torch.full((size,), float(group.rank)).to(dtype)
        received = [torch.full((size,), -1).to(dtype) for _ in group.peers]
        group.swap({peer: (mine, came) for peer, came in zip(group.peers, received, strict=True)})
        expected = [torch.full((size,), float(peer)).to(dtype) for peer in group.peers]
        assert all(map(torch.equal, received, expected))
        seen.append((staging._outgoing.numel(), staging._incoming.numel()))
    return seen


def test_memory_is_kept_and_what_goes_to_several_ranks_is_copied_once(ranks: Any) -> None:
    for seen in ranks.run(3, swap_sizes, via="host"):
        assert seen == [(64, 128), (64, 128), (2048, 4096), (2048, 4096)]
