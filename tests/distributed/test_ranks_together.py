"""How ranks fail, stop and disagree together."""

import os
import signal
from typing import Any

import pytest
import torch

from lockstep.workers.engine import Group, Listener, PeerLost, Point, Progress, RanksDisagree, Stopped, Trainer, Wish
from lockstep.workers.engine.digest import weights_digest
from lockstep.workers.models.linear import SoftmaxRegression
from tests.distributed.test_one_curve import RandomImages


class AtStep(Listener):
    """Does something on one rank once a step is done."""

    def __init__(self, group: Group, rank: int, step: int, deed: Any) -> None:
        self.is_the_one, self.step, self.deed, self.is_asked = group.rank == rank, step, deed, False

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        if self.is_the_one and progress.step == self.step:
            self.deed(self)

    def wish(self) -> Wish:
        return Wish.STOP if self.is_asked else Wish.GO_ON


def ask_to_stop(listener: AtStep) -> None:
    listener.is_asked = True


def die(listener: AtStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(group: Group, deed: Any, deed_rank: int, bent_rank: int | None = None) -> tuple[str, str]:
    """What ended training, and the digest of what it left."""
    torch.manual_seed(1)
    module = SoftmaxRegression(64, 10)
    if group.rank == bent_rank:
        module.net[1].bias.data[0] = 1e-30
    trainer = Trainer(max_steps=50, batch_size=20, shards=4, log_every_steps=1)
    listener = AtStep(group, deed_rank, 3, deed)
    try:
        trainer.fit(
            module,
            RandomImages(200),
            lambda parameters: torch.optim.SGD(parameters, lr=0.05),
            group=group,
            listener=listener,
        )
    except (Stopped, PeerLost, RanksDisagree) as error:
        return f"{type(error).__name__}: {error}", weights_digest(module)
    return "done", weights_digest(module)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_ranks_stop_after_the_same_step_when_one_is_asked_to(ranks: Any, world_size: int) -> None:
    seen = ranks.run(world_size, train_until, ask_to_stop, world_size - 1)
    assert {ending for ending, _ in seen} == {"Stopped: stopped after step 3"}
    assert len({digest for _, digest in seen}) == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_notice_at_once_when_a_rank_is_killed(ranks: Any, victim: int) -> None:
    outcomes = ranks.outcomes(3, train_until, die, victim)
    assert outcomes[victim] == (None, "died")
    for rank in {0, 1, 2} - {victim}:
        value, failure = outcomes[rank]
        assert failure is None
        assert value[0].startswith("PeerLost: worker ")


def test_ranks_that_do_not_hold_the_same_bits_say_so(ranks: Any) -> None:
    seen = ranks.run(2, train_until, die, -1, 1)
    assert all(ending.startswith("RanksDisagree: the model at the start differs") for ending, _ in seen)
