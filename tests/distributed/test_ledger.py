"""The ledgers of ranks that train together."""

import contextlib
import time
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Account, Classifier, Examples, Group, Ledger, Phase, Trainer, loop
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
            assert account.seconds[Phase.DATA] > 0.8 * 30 * shards_of_the_slow_rank * BUSY_S
        else:
            assert waits[rank] > 0.5 * 30 * shards_of_the_slow_rank * BUSY_S


class Act(Classifier):
    """A model of operations whose kernels PyTorch chooses anew when somebody looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(inputs.flatten(1)))
        return self.second(nn.functional.mish(hidden)) * (1 + torch.sigmoid(hidden[:, :4]).prod(1, keepdim=True))


class Slopes(Classifier):
    """A model that asks for gradients while it computes, as those that learn from equations do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():  # in validation too
            inputs = inputs.flatten(1).detach().requires_grad_()
            outputs = self.layer(inputs)
            (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
            return outputs + slope.square().mean(1, keepdim=True)


def digest_and_flops(group: Group, model: type[Classifier], is_counted: bool) -> tuple[str, float]:
    torch.manual_seed(1)
    ledger = Ledger()
    trainer = Trainer(max_steps=10, batch_size=30, shards=4)
    with contextlib.ExitStack() as stack:
        if not is_counted:
            stack.enter_context(mock.patch.object(loop, "flops_per_step", lambda *arguments: 0.0))
        result = trainer.fit(
            model(),
            RandomImages(200),
            lambda parameters: torch.optim.SGD(parameters, lr=0.05),
            group=group,
            ledger=ledger,
        )
    return result.weights_digest, ledger.account().flops_per_step


@pytest.mark.parametrize("model", [Act, Slopes])
def test_counting_operations_changes_no_bit(ranks: Any, model: type[Classifier]) -> None:
    outcomes = [
        outcome
        for world_size, is_counted in ((1, False), (1, True), (2, True), (4, True))
        for outcome in ranks.run(world_size, digest_and_flops, model, is_counted)
    ]
    assert len({digest for digest, _ in outcomes}) == 1
    counted = {flops for _, flops in outcomes[1:]}
    assert len(counted) == 1
    if model is Act:
        # A multiplication and an addition for each weight, and backward as many twice; the data needs no gradient.
        assert counted == {2.0 * 30 * (2 * 64 * 32 + 3 * 32 * 10)}


def test_every_rank_counts_the_operations_of_the_whole_minibatch(ranks: Any) -> None:
    counts = {account.flops_per_step for world_size in (1, 2, 4) for account, _ in ranks.run(world_size, train, -1)}
    assert counts == {2 * 2 * 64 * 10 * 20}
