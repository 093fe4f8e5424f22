"""The order of an epoch, computed by index."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.workers.engine.randomness import EpochOrder, derive_seed


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_an_epoch_visits_every_example_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(EpochOrder(size, seed, epoch)[0:size].tolist()) == list(range(size))


@given(size=st.integers(1, 3000), data=st.data())
def test_any_part_of_an_epoch_can_be_had_by_itself(size: int, data: st.DataObject) -> None:
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=5))})
    order = EpochOrder(size, 7, 1)
    in_parts = [index for start, stop in pairwise(cuts) for index in order[start:stop].tolist()]
    assert in_parts == order[0:size].tolist()


def test_another_seed_or_epoch_gives_another_order() -> None:
    orders = [tuple(EpochOrder(1000, seed, epoch)[0:1000].tolist()) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_the_order_is_that_of_engine_version_1() -> None:
    assert EpochOrder(20, 7, 0)[0:20].tolist() == EXPECTED_ORDER, "a change here must raise ENGINE_VERSION"


EXPECTED_ORDER = [15, 9, 1, 18, 12, 10, 11, 0, 3, 4, 19, 7, 2, 6, 14, 5, 16, 8, 13, 17]


def test_every_example_is_as_likely_at_every_place() -> None:
    size, draws = 10, 4000
    counts = torch.zeros(size, size)
    for seed in range(draws):
        counts[torch.arange(size), EpochOrder(size, seed, 0)[0:size]] += 1
    expected = draws / size
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 81 degrees of freedom: a fair shuffle exceeds 125 once in a thousand draws of the seeds.
    assert chi_square < 125


def test_neighbours_in_the_data_are_not_neighbours_in_an_epoch() -> None:
    order = EpochOrder(60_000, 0, 0)[0:60_000].double()
    correlation = torch.corrcoef(torch.stack([order[:-1], order[1:]]))[0, 1].item()
    assert abs(correlation) < 0.02


def test_seeds_derived_for_different_things_differ() -> None:
    seeds = {derive_seed(seed, step, shard) for seed in range(10) for step in range(30) for shard in range(8)}
    assert len(seeds) == 2400
    assert all(0 <= seed < 2**63 for seed in seeds)
