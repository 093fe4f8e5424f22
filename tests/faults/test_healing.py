"""Whoever dies, whenever, wherever: weights and metrics are those of the undisturbed run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from torch import Tensor

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Activity, NotDeterministic, Origin, Point, Result, Trainer
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.state import TrainState
from lockstep.workers.training import train
from tests.support.honest_models import Numbers, Points, sgd
from tests.support.process_fleet import Context, Fault, Fleet

STEPS = 12
SPEC: dict[str, Any] = {
    "model": {"mlp": {"hidden_units": [24], "activation": "relu", "dropout": [0.2]}},
    "data": {
        "synthetic_regression": {
            "w": [1, -2, 3, -4, 5, -6, 7, -8],
            "b": 4.2,
            "noise": 0.01,
            "train_size": 1437,
            "validation_size": 360,
        }
    },
    "optimizer": {"sgd": {"learning_rate": 0.001, "momentum": 0.9}},
    "training": {
        "max_steps": STEPS,
        "batch_size": 50,
        "seed": 7,
        "log_every_steps": 3,
        "evaluate_every_steps": 4,
    },
    "resources": {"shards": 4, "cpus_per_worker": 1},
}


def train_and_tell(context: Context, spec: dict[str, Any]) -> tuple[str, list[Point]]:
    result = train(
        json_format.ParseDict(spec, JobSpec()),
        context.group,
        context.listener,
        regroup=context.membership.next_group,
    )
    return result.weights_digest, context.listener.points


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> tuple[str, list[Point]]:
    (outcome,) = fleet.run(1, train_and_tell, SPEC)
    digest, points = outcome
    assert {point.name for point in points} == {"train_loss", "val_loss", "grad_norm", "learning_rate"}
    assert len(points) == 4 * 3 + 3
    return digest, points


PLACES = [
    (Activity.HAND_OVER, 0, 1),
    (Activity.COMPUTE, 1, 1),
    (Activity.COMPUTE, 5, 1),
    (Activity.EXCHANGE, 5, 1),
    ("swap", 5, 1),
    ("uneven", 5, 1),
    (Activity.UPDATE, 5, 1),
    (Activity.EVALUATE, 4, 1),
    ("swap", 4, 2),
    (Activity.REPORT, 6, 1),
    ("swap", 6, 2),
    ("swap", 6, 3),
    ("uneven", 6, 3),
    (Activity.FINISH, STEPS, 1),
]


def cases() -> Iterator[Any]:
    """Every place, rank and number of workers; one of each place's for the quick suite, the rest for test-faults."""
    for number, place in enumerate(PLACES):
        quick = (3, number % 3)
        for world_size in (2, 3, 4):
            for rank in range(world_size):
                marks = () if (world_size, rank) == quick else pytest.mark.exhaustive
                yield pytest.param(world_size, rank, place, marks=marks)


@pytest.mark.parametrize(("world_size", "rank", "place"), list(cases()), ids=str)
def test_a_death_anywhere_leaves_the_curve_as_it_was(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], world_size: int, rank: int, place: tuple[Any, int, int]
) -> None:
    outcomes = fleet.run(world_size, train_and_tell, SPEC, faults=[Fault(rank, *place)])
    assert_undisturbed(outcomes, undisturbed, world_size - 1)


def assert_undisturbed(outcomes: list[Any], undisturbed: tuple[str, list[Point]], survivors: int) -> None:
    assert len(outcomes) == survivors, "the faults struck"
    for digest, points in outcomes:
        assert points == undisturbed[1]
        assert digest == undisturbed[0]


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(0, Activity.COMPUTE, 5), Fault(1, Activity.COMPUTE, 5)],
        pytest.param([Fault(1, Activity.EXCHANGE, 5), Fault(2, Activity.EXCHANGE, 5)], marks=pytest.mark.exhaustive),
        pytest.param(
            [Fault(0, Activity.COMPUTE, 5), Fault(1, Activity.COMPUTE, 6), Fault(2, Activity.COMPUTE, 7)],
            marks=pytest.mark.exhaustive,
        ),
        [Fault(3, Activity.COMPUTE, 5), Fault(0, Activity.HAND_OVER, 4)],
        pytest.param([Fault(0, Activity.COMPUTE, 5), Fault(1, "swap", 4, 3)], marks=pytest.mark.exhaustive),
        # Rank 1 has what it needs of step 5 and the others have not: it hands over, or it dies before it can.
        [Fault(0, "uneven", 5), Fault(1, Activity.HAND_OVER, 5)],
        [Fault(0, "uneven", 5), Fault(2, Activity.HAND_OVER, 4)],
        pytest.param([Fault(0, "uneven", 5), Fault(3, Activity.HAND_OVER, 4)], marks=pytest.mark.exhaustive),
        [Fault(0, Activity.FINISH, STEPS), Fault(1, Activity.FINISH, STEPS)],
    ],
    ids=str,
)
def test_several_deaths_leave_the_curve_as_it_was(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], faults: list[Fault]
) -> None:
    outcomes = fleet.run(4, train_and_tell, SPEC, faults=faults)
    assert_undisturbed(outcomes, undisturbed, 4 - len(faults))


LONG = SPEC | {"training": SPEC["training"] | {"max_steps": 400}}


def test_a_worker_that_joins_on_the_way_leaves_the_curve_as_it_was(fleet: Fleet) -> None:
    (alone,) = fleet.run(1, train_and_tell, LONG)
    outcomes = fleet.run(2, train_and_tell, LONG, joins_after_step=100)
    assert_undisturbed(outcomes, alone, 3)
    outcomes = fleet.run(1, train_and_tell, LONG, joins_after_step=100, faults=[Fault(0, Activity.COMPUTE, 300)])
    assert_undisturbed(outcomes, alone, 1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(0, Activity.JOIN, 100),
        Fault(1, Activity.JOIN, 100),
        Fault(0, Activity.HAND_OVER, 100),  # which is the one that hands over
        Fault(2, Activity.HAND_OVER, 0),  # which is the one that joins
    ],
    ids=str,
)
def test_a_death_while_a_worker_joins_leaves_the_curve_as_it_was(fleet: Fleet, fault: Fault) -> None:
    (alone,) = fleet.run(1, train_and_tell, LONG)
    outcomes = fleet.run(2, train_and_tell, LONG, joins_after_step=100, faults=[fault])
    assert_undisturbed(outcomes, alone, 2)


@pytest.mark.parametrize("activity", [Activity.UPDATE, Activity.EVALUATE, Activity.REPORT, Activity.FINISH], ids=str)
def test_a_worker_that_joins_at_the_end_gets_the_result_too(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], activity: Activity
) -> None:
    outcomes = fleet.run(2, train_and_tell, SPEC, joins_after_step=STEPS - 1, joins_in=activity)
    assert_undisturbed(outcomes, undisturbed, 3)


def train_and_be_confirmed_late(context: Context) -> tuple[str, list[Point]]:
    """Train, and have the result arrive only when the ranks have met again."""
    listener = context.listener

    def finished(result: Result, look: Callable[[], None]) -> None:
        while context.membership.current.rank == 0 and (Activity.HAND_OVER, STEPS) not in listener.visits:
            look()
            time.sleep(0.001)

    listener.finished = finished  # type: ignore[method-assign]
    return train_and_tell(context, SPEC)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_worker_that_joins_while_the_result_is_on_its_way_does_not_wait_for_that(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], world_size: int
) -> None:
    outcomes = fleet.run(world_size, train_and_be_confirmed_late, joins_after_step=STEPS - 1, joins_in=Activity.FINISH)
    assert_undisturbed(outcomes, undisturbed, world_size + 1)


class SlowAtTheEnd(Checkpoints):
    """Checkpoints on a file system that takes the last one only when the ranks have met again."""

    def __init__(self, folder: str, context: Context) -> None:
        super().__init__(folder)
        self.context = context

    def write(self, state: TrainState) -> None:
        listener = self.context.listener
        listener.send(("written", state.step))
        while state.step == STEPS and (Activity.HAND_OVER, STEPS) not in listener.visits:
            time.sleep(0.001)
        super().write(state)


def train_and_keep(context: Context, folder: str) -> tuple[str, list[Point]]:
    result = train(
        json_format.ParseDict(SPEC, JobSpec()),
        context.group,
        context.listener,
        regroup=context.membership.next_group,
        origin=Origin(SlowAtTheEnd(folder, context)),
    )
    return result.weights_digest, context.listener.points


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_worker_that_joins_while_the_last_checkpoint_is_written_does_not_wait_for_that(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], world_size: int, tmp_path: Path
) -> None:
    outcomes = fleet.run(
        world_size, train_and_keep, str(tmp_path), joins_after_step=STEPS - 1, joins_in=Activity.CHECKPOINT
    )
    assert_undisturbed(outcomes, undisturbed, world_size + 1)
    assert [step for kind, step in fleet.messages if kind == "written"] == [STEPS], "once is enough"


class Shifted(Numbers):
    """Computes otherwise in the process that came last."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + self.shift)


def train_shifted(context: Context) -> str:
    torch.manual_seed(5)
    try:
        Trainer(max_steps=400, batch_size=20).fit(
            Shifted(float(context.group.rank == 2)),
            Points(),
            sgd,
            group=context.group,
            regroup=context.membership.next_group,
            listener=context.listener,
        )
    except NotDeterministic as error:
        return str(error)
    return "nothing"


def test_a_worker_that_joins_and_computes_otherwise_is_named_before_it_takes_a_step(fleet: Fleet) -> None:
    outcomes = fleet.run(2, train_shifted, joins_after_step=100)
    assert len(outcomes) == 3
    assert all(words.startswith("Shifted gave other bits on rank 2 than on rank 0 in training") for words in outcomes)
