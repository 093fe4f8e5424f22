"""The ledgers of ranks that train together."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from lockstep.workers.engine import Account, Examples, Group, Ledger, Phase, Trainer
from lockstep.workers.models.linear import SoftmaxRegression
from tests.distributed.test_one_curve import RandomImages

BUSY_S = 0.005


class SlowImages(RandomImages):
    """Images that take a while to choose."""

    def take(self, examples: Examples, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        while time.perf_counter() - began < BUSY_S:
            pass
        return super().take(examples, indices)


def train(group: Group, slow_rank: int) -> tuple[Account, float]:
    """The account of a rank, and the seconds that it trained."""
    torch.manual_seed(1)
    data = (SlowImages if group.rank == slow_rank else RandomImages)(200)
    began = time.perf_counter()
    ledger = Ledger()
    Trainer(max_steps=30, batch_size=20, shards=4, log_every_steps=5).fit(
        SoftmaxRegression(64, 10),
        data,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        group=group,
        ledger=ledger,
    )
    return ledger.account(), time.perf_counter() - began


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_rank_that_waits_least_is_the_slow_one_and_all_time_is_accounted_for(ranks: Any, world_size: int) -> None:
    slow_rank = world_size - 1
    outcomes = ranks.run(world_size, train, slow_rank)
    for account, took_s in outcomes:
        assert sum(account.seconds) == pytest.approx(took_s, rel=0.02)
        assert account.seconds[Phase.HEALING] == 0
    waits = [account.seconds[Phase.EXCHANGE_WAIT] for account, _ in outcomes]
    assert waits.index(min(waits)) == slow_rank
    shards_of_the_slow_rank = 2 if world_size == 2 else 1
    for rank, (account, _) in enumerate(outcomes):
        if rank == slow_rank:
            assert account.seconds[Phase.DATA] >= 30 * shards_of_the_slow_rank * BUSY_S
        else:
            assert waits[rank] > 0.5 * 30 * shards_of_the_slow_rank * BUSY_S


def test_counting_operations_changes_no_bit_and_every_rank_counts_the_same(ranks: Any) -> None:
    counts = {account.flops_per_step for world_size in (1, 2, 4) for account, _ in ranks.run(world_size, train, -1)}
    assert counts == {2 * 2 * 64 * 10 * 20}
