"""Whoever dies or joins while buffers are learnt, exchanged or combined: they are those of the undisturbed run."""

from typing import Any

import pytest
import torch

from lockstep.workers.engine import Activity, Point, Trainer
from tests.distributed.test_buffers import BATCH_SIZE, SEED, Counts, Moving, Net, Points, Seldom
from tests.faults.fleet import Context, Fault, Fleet


def train_and_tell(context: Context, kind: type[Net]) -> tuple[str, list[Point], dict[str, list[float]]]:
    torch.manual_seed(1)
    module = kind()
    # Without the audit, so that what changes is learnt by repeating a step.
    trainer = Trainer(max_steps=8, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=2, audit="off")
    result = trainer.fit(
        module,
        Points(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        group=context.group,
        regroup=context.membership.next_group,
        listener=context.listener,
    )
    kept = {name: torch.view_as_real(b) if b.is_complex() else b for name, b in module.named_buffers()}
    return result.weights_digest, context.listener.points, {name: b.tolist() for name, b in kept.items()}


PLACES = [("swap", 1, 1), ("swap", 1, 2), ("uneven", 1, 3), ("swap", 5, 2), ("uneven", 5, 2), (Activity.UPDATE, 5, 1)]


@pytest.mark.parametrize("kind", [Counts, Moving, Seldom])
def test_a_death_while_buffers_are_exchanged_leaves_them_as_they_would_be(fleet: Fleet, kind: type[Net]) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, kind)
    for number, place in enumerate(PLACES):
        outcomes = fleet.run(3, train_and_tell, kind, faults=[Fault(number % 3, *place)])
        assert all(outcome == undisturbed for outcome in outcomes), place


@pytest.mark.parametrize("kind", [Counts, Moving, Seldom])
def test_a_worker_that_joins_learns_what_changes(fleet: Fleet, kind: type[Net]) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, kind)
    outcomes: list[Any] = fleet.run(2, train_and_tell, kind, joins_after_step=3)
    assert len(outcomes) == 3
    assert all(outcome == undisturbed for outcome in outcomes)
