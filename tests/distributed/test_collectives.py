"""Exchanges by the collectives of torch, as GPUs use them over NCCL; here over gloo."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from lockstep.workers.engine import Group
from lockstep.workers.engine.exchange.nccl import NcclGroup
from lockstep.workers.engine.exchange.reduce import ChunkExchange
from tests.distributed.test_one_curve import exchange_random_pieces


@contextmanager
def collectives(group: Group, store: Path) -> Iterator[mock.Mock]:
    """Have a group of processes on CPUs exchange as one on GPUs does; what it does not do by collectives is counted."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=group.rank, world_size=group.world_size)
    group._nccl = cast(NcclGroup, SimpleNamespace(device=torch.device("cpu"), leave=dist.destroy_process_group))
    with mock.patch.object(Group, "swap", autospec=True, side_effect=Group.swap) as swap:
        yield swap


def exchange(group: Group, store: Path, shards: int, bucket_bytes: int) -> tuple[bool, int]:
    with collectives(group, store) as swap:
        is_exact = exchange_random_pieces(group, shards, partial(ChunkExchange, bucket_bytes=bucket_bytes))
    return is_exact, swap.call_count


@pytest.mark.parametrize("bucket_bytes", [1000, 1 << 20])
@pytest.mark.parametrize(("world_size", "shards"), [(2, 2), (2, 6), (3, 4), (3, 8), (4, 7), (4, 13)])
def test_collectives_give_the_bits_of_the_tree(
    ranks: Any, tmp_path: Path, world_size: int, shards: int, bucket_bytes: int
) -> None:
    for seen in ranks.run(world_size, exchange, tmp_path / "store", shards, bucket_bytes):
        assert seen == (True, 0)


def gather_and_swap(group: Group, store: Path) -> tuple[list[int], list[int]]:
    with collectives(group, store):
        gathered = group.gather(torch.tensor([group.rank])).view(-1).tolist()
        received = {peer: torch.tensor([-1]) for peer in group.peers}
        group.swap({peer: (torch.tensor([10 * group.rank + peer]), received[peer]) for peer in group.peers})
    return gathered, [int(received[peer]) for peer in sorted(received)]


def test_what_is_gathered_and_swapped_arrives(ranks: Any, tmp_path: Path) -> None:
    seen = ranks.run(3, gather_and_swap, tmp_path / "store")
    assert [gathered for gathered, _ in seen] == [[0, 1, 2]] * 3
    assert [swapped for _, swapped in seen] == [[10, 20], [1, 21], [2, 12]]
