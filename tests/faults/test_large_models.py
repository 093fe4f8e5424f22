"""A death while gradients are exchanged in buckets, during the backward pass and after it."""

from collections.abc import Iterator
from typing import Any

import pytest

from lockstep.workers.engine import Activity, Point
from tests.faults.test_healing import SPEC, STEPS, assert_undisturbed, train_and_tell
from tests.support.process_fleet import Fault, Fleet

LARGE = SPEC | {"model": {"mlp": {"hidden_units": [1024, 1024, 1024], "activation": "relu"}}}
SWAPS = 6
"""A step's: two for each of three buckets."""


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> tuple[str, list[Point]]:
    (outcome,) = fleet.run(1, train_and_tell, LARGE)
    assert len(outcome[1]) == 4 * 3 + 3
    return outcome


def cases() -> Iterator[Any]:
    for world_size in (2, 3, 4):
        for rank in range(world_size):
            for swap in range(1, SWAPS + 1):
                is_quick = (world_size, rank, swap) in ((3, 0, 1), (3, 2, 4), (2, 1, SWAPS))
                yield pytest.param(world_size, rank, swap, marks=() if is_quick else pytest.mark.exhaustive)


@pytest.mark.parametrize(("world_size", "rank", "swap"), list(cases()))
def test_a_death_in_any_bucket_leaves_the_curve_as_it_was(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], world_size: int, rank: int, swap: int
) -> None:
    outcomes = fleet.run(world_size, train_and_tell, LARGE, faults=[Fault(rank, "swap", 5, swap)])
    assert_undisturbed(outcomes, undisturbed, world_size - 1)


def test_a_death_on_the_way_to_the_end_leaves_the_curve_as_it_was(
    fleet: Fleet, undisturbed: tuple[str, list[Point]]
) -> None:
    outcomes = fleet.run(3, train_and_tell, LARGE, faults=[Fault(0, Activity.COMPUTE, 5), Fault(1, "swap", STEPS, 2)])
    assert_undisturbed(outcomes, undisturbed, 1)
