"""What is random is one curve on any number of ranks, and what depends on the rank is named."""

import os
import random
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from lockstep.workers.engine import EngineError, Examples, Group, Listener, NotDeterministic, Point, Progress, Trainer
from tests.support.honest_models import HONEST, Numbers, Points, sgd


class Recorder(Listener):
    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


def train(group: Group, name: str, audit: str) -> tuple[str, list[Point]]:
    """The digest of the weights, and all points, of an honest model."""
    module, data = HONEST[name]
    torch.manual_seed(5)
    made = module()
    for generators in (torch.manual_seed, random.seed, np.random.seed):
        generators(group.rank)
    recorder = Recorder()
    settings: dict[str, Any] = {"max_steps": 4, "batch_size": 20, "shards": 4, "log_every_steps": 1}
    result = Trainer(audit=audit, evaluate_every_steps=2, **settings).fit(
        made, data(), sgd, group=group, listener=recorder
    )
    return result.weights_digest, recorder.points


@pytest.mark.parametrize("audit", ["start", "always"])
@pytest.mark.parametrize(
    "name",
    [
        "augmentation",
        "dropout in evaluation",
        "autoencoder that draws",
        "GRU, tied",
        "spectral norm, old",
        "lazy layers",
    ],
)
def test_what_is_drawn_is_the_same_on_any_number_of_ranks(ranks: Any, name: str, audit: str) -> None:
    seen = [outcome for world_size in (1, 2, 3, 4) for outcome in ranks.run(world_size, train, name, audit)]
    assert seen[0][1]
    assert all(other == seen[0] for other in seen)


class Ranked(Numbers):
    """Looks at what differs between workers, while it trains or while it is validated."""

    def __init__(self, rank: int, in_training: bool) -> None:
        super().__init__()
        os.environ["PLACE"], self.in_training = str(rank), in_training

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + int(os.environ["PLACE"]) * (self.training is self.in_training))


def words_of_ranked(group: Group, in_training: bool) -> str:
    torch.manual_seed(5)
    try:
        Trainer(max_steps=4, batch_size=20).fit(Ranked(group.rank, in_training), Points(), sgd, group=group)
    except NotDeterministic as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(("in_training", "kind"), [(True, "training"), (False, "validation")])
def test_a_model_that_looks_at_the_rank_is_named_on_every_rank(ranks: Any, in_training: bool, kind: str) -> None:
    words = ranks.run(3, words_of_ranked, in_training)
    assert words[0].startswith(f"Ranked gave other bits on ranks 1, 2 than on rank 0 in {kind}")
    assert set(words) == {words[0]}


class Unseeded(Points):
    """Makes other examples on every worker."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(os.getpid())
        self.train = Examples(torch.randn(50, 8, generator=generator), torch.zeros(50, 1))


def words_of_refusal(group: Group, data: type[Points], setting: str, seed: int) -> str:
    """What a rank says that does not begin; rank 1 has a setting in its environment, and another seed."""
    torch.manual_seed(5 + seed * group.rank)
    with mock.patch.dict(os.environ, {setting: "AVX2"} if group.rank == 1 and setting else {}):
        try:
            Trainer(max_steps=4, batch_size=20).fit(Numbers(), data(), sgd, group=group)
        except EngineError as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_rank_whose_math_library_is_set_otherwise_is_refused(ranks: Any) -> None:
    words = ranks.run(2, words_of_refusal, Points, "ONEDNN_MAX_CPU_ISA", 0)
    assert all(told.startswith("HardwareDiffers: the hardware class differs between workers") for told in words)
    assert "ONEDNN_MAX_CPU_ISA=AVX2" not in words[0]
    assert words[1].endswith("ONEDNN_MAX_CPU_ISA=AVX2")


def test_data_and_models_that_each_worker_makes_otherwise_are_told_with_the_hint(ranks: Any) -> None:
    for told in ranks.run(2, words_of_refusal, Unseeded, "", 0):
        assert told.startswith("DataError: data: the SHA-256 of the data differs between workers")
        assert "make it with a generator of a fixed seed" in told
    for told in ranks.run(2, words_of_refusal, Points, "", 1):
        assert told.startswith("NotDeterministic: the model at the start differs between workers")
        assert "seeded alike on every worker" in told


class Secret(Numbers):
    """Keeps a state on one rank alone."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.has_state, self.calls = rank == 1, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.has_state
        return super().forward(inputs)


def words_of_secret(group: Group) -> str:
    torch.manual_seed(5)
    try:
        Trainer(max_steps=4, batch_size=20).fit(Secret(group.rank), Points(), sgd, group=group)
    except NotDeterministic as error:
        return str(error)
    return "nothing"


def test_what_one_rank_finds_is_told_by_all(ranks: Any) -> None:
    words = ranks.run(2, words_of_secret)
    assert words[0].startswith("calls of Secret is a plain number")
    assert words[0] == words[1]
