"""Whoever dies or joins while buffers are learnt, exchanged or combined: they are those of the undisturbed run."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lockstep.workers.engine import Activity, Group, ModelError, Point, Trainer
from lockstep.workers.engine.errors import PeerLost
from lockstep.workers.engine.pace import HostPace
from tests.distributed.test_buffers import BATCH_SIZE, SEED, Counts, Moving, Net, Points, Seldom, Shown
from tests.support.process_fleet import Context, Fault, Fleet


def train_and_tell(context: Context, kind: type[Net]) -> tuple[str, list[Point], dict[str, list[float]]]:
    torch.manual_seed(1)
    module = kind()
    # Without the audit, so that what changes is learnt by repeating a step.
    trainer = Trainer(
        max_steps=8, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=2, evaluate_every_steps=2, audit="off"
    )
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


PLACES: list[tuple[Activity | str, int, int]] = [
    ("swap", 1, 1),
    ("swap", 1, 2),
    ("uneven", 1, 3),
    ("swap", 5, 2),
    ("uneven", 5, 2),
    (Activity.UPDATE, 5, 1),
]


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


class Untold(Net):
    """Writes to a buffer in a way that leaves no trace, in which the engine sees it only when it looks closely."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def keep(self, inputs: Tensor) -> None:
        self.mean.data.mul_(0.9).add_(0.1 * inputs.mean(0))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - self.mean)


class UntoldLate(Untold):
    """Does so from the fourth step on, which fails the job, also if that step is lost."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def keep(self, inputs: Tensor) -> None:
        self.calls += 1
        if self.calls > 3:
            super().keep(inputs)


def test_a_lost_first_step_leaves_no_trace_of_what_was_written_without_one(fleet: Fleet) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, Untold)
    for place in (("swap", 1, 1), ("swap", 1, 2), ("uneven", 1, 3), (Activity.EXCHANGE, 1, 1)):
        outcomes = fleet.run(3, train_and_tell, Untold, faults=[Fault(1, *place)])
        assert outcomes == [undisturbed] * 2, place


def what_fails(context: Context, kind: type[Net]) -> Any:
    try:
        return train_and_tell(context, kind)
    except ModelError as error:
        return str(error)


def test_what_was_written_without_a_trace_in_a_lost_step_is_not_taken_for_the_truth(fleet: Fleet) -> None:
    outcomes = fleet.run(2, what_fails, UntoldLate, faults=[Fault(1, Activity.EXCHANGE, 4)])
    assert len(outcomes) == 1
    assert "mean was changed in a way that leaves no trace, after the first step" in outcomes[0]


def test_what_a_validation_has_written_has_the_same_bits_after_a_loss(fleet: Fleet) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, Shown)
    outcomes = fleet.run(3, train_and_tell, Shown, faults=[Fault(1, "swap", 6, 1)])
    assert all(repr(outcome) == repr(undisturbed) for outcome in outcomes), "the signs of zeros too"


@contextlib.contextmanager
def launched_buffers() -> Iterator[None]:
    """As over NCCL: a swap of buffers returns at once, and hangs when a peer is lost, until it is broken off untold."""
    plain_swap = Group.swap
    launched: list[threading.Thread] = []

    def swap(group: Group, tensors: Any) -> None:
        if next(iter(tensors.values()))[0].dtype != torch.uint8:
            return plain_swap(group, tensors)

        def work() -> None:
            try:
                plain_swap(group, tensors)
            except PeerLost:  # which only hangs, until the membership has ended and it is broken off
                with contextlib.suppress(PeerLost):
                    while True:
                        group.check()
                        time.sleep(0.001)

        launched.append(threading.Thread(target=work))
        launched[-1].start()
        return None

    def wait(pace: HostPace) -> None:
        while launched:
            launched.pop().join()

    with mock.patch.object(Group, "swap", swap), mock.patch.object(HostPace, "wait", wait):
        yield


def train_with_launched_buffers(context: Context, kind: type[Net]) -> Any:
    with launched_buffers():
        return train_and_tell(context, kind)


@pytest.mark.parametrize("kind", [Counts, Moving])
def test_no_step_is_applied_before_its_buffers_have_come(fleet: Fleet, kind: type[Net]) -> None:
    (undisturbed,) = fleet.run(1, train_and_tell, kind)
    for world_size, nth in ((2, 1), (2, 2), (2, 3), (3, 2), (3, 3)):
        outcomes = fleet.run(world_size, train_with_launched_buffers, kind, faults=[Fault(1, "swap", 5, nth)])
        assert outcomes, "somebody lives"
        assert all(outcome == undisturbed for outcome in outcomes), (world_size, nth)
