"""Whoever joins goes on with what the optimizers of the others keep, bit for bit."""

from typing import Any

import pytest
import torch

from lockstep.workers.engine import Trainer
from tests.distributed.test_buffers import BATCH_SIZE, SEED
from tests.distributed.test_optimizers import OPTIMIZERS, Net, points
from tests.support.process_fleet import Context, Fault, Fleet


def train_and_tell(context: Context, optimizer: str, dtype: torch.dtype) -> tuple[str, list[Any]]:
    torch.manual_seed(1)
    trainer = Trainer(max_steps=8, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=2)
    result = trainer.fit(
        Net().to(dtype),
        points(dtype),
        OPTIMIZERS[optimizer],
        group=context.group,
        regroup=context.membership.next_group,
        listener=context.listener,
    )
    return result.weights_digest, context.listener.points


CASES = [("wide", torch.float32), ("signs", torch.float32), ("counting", torch.float32), ("nadam", torch.float64)]


@pytest.mark.parametrize(("optimizer", "dtype"), CASES)
def test_a_worker_that_joins_has_what_the_optimizer_keeps(fleet: Fleet, optimizer: str, dtype: torch.dtype) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, optimizer, dtype)
    outcomes = fleet.run(2, train_and_tell, optimizer, dtype, joins_after_step=3)
    assert outcomes == [undisturbed] * 3
    outcomes = fleet.run(3, train_and_tell, optimizer, dtype, faults=[Fault(1, "uneven", 5, 1)])
    assert outcomes == [undisturbed] * 2
