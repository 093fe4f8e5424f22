"""A model that is exchanged in buckets, while the backward pass still runs."""

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.workers.engine import Classifier, DataModule, Examples, Group, Point, Trainer
from lockstep.workers.engine.exchange import reduce
from lockstep.workers.engine.exchange.overlap import OverlappedExchange
from tests.distributed.test_one_curve import Recorder
from tests.support.honest_models import sgd
from tests.support.host_recorder import HostRecorder, shards_by

WIDTH = 256
LAYER_BYTES = 4 * WIDTH * WIDTH


class Images(DataModule):
    """Noise with classes."""

    def load(self) -> None:
        random = torch.Generator().manual_seed(1)
        inputs, targets = torch.randn(96, 64, generator=random), torch.randint(0, 10, (96,), generator=random)
        self.train = self.validation = Examples(inputs, targets)


class Deep(Classifier):
    """Wide layers one after another: several buckets, of which all but the first come while others are computed."""

    def __init__(self) -> None:
        super().__init__()
        middle = [layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1))]
        self.body = nn.Sequential(nn.Linear(64, WIDTH), *middle, nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Wide(Deep):
    """One wide layer, so that any number of parameters can be had.

    Args:
        hidden_units: its width; each unit has 75 parameters.
    """

    def __init__(self, hidden_units: int) -> None:
        Classifier.__init__(self)
        self.body = nn.Sequential(nn.Linear(64, hidden_units), nn.ReLU(), nn.Linear(hidden_units, 10))


class Twice(Deep):
    """Uses the same layers in two re-entrant checkpoints, so that their gradients come in two parts."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body[0](inputs)
        for _ in range(2):
            hidden = checkpoint(self.body[1:8], hidden, use_reentrant=True)
        outputs: Tensor = self.body[-1](hidden)
        return outputs


class Unused(Deep):
    """Has layers without a gradient, between others."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body[-1](self.body[:4](inputs))
        return outputs


class Broken(torch.autograd.Function):
    """Raises in its backward pass when it is told to."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, is_broken: bool) -> Tensor:
        context.is_broken = is_broken
        return inputs.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if context.is_broken:
            raise ArithmeticError("no gradient here")
        return gradient, None


class BreaksInThirdStep(Deep):
    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.breaks = breaks
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        hidden = Broken.apply(self.body[:3](inputs), self.breaks and self.calls == 3)
        outputs: Tensor = self.body[3:](hidden)
        return outputs


def buckets_of_a_layer() -> ExitStack:
    """Have the model exchanged as one is whose layers are 16 times as large: they are what takes the time."""
    patches = ExitStack()
    patches.enter_context(mock.patch.object(reduce, "BUCKET_BYTES", LAYER_BYTES))
    patches.enter_context(mock.patch.object(reduce, "SWAP_LIMIT_BYTES", LAYER_BYTES // 2))
    return patches


def fit(group: Group, module: Deep, shards: int, batch_size: int = 40) -> tuple[str, list[Point]]:
    recorder = Recorder()
    data = Images()
    data.load()
    result = Trainer(max_steps=6, batch_size=batch_size, shards=shards, seed=3, log_every_steps=1).fit(
        module,
        data,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        group=group,
        listener=recorder,
    )
    return result.weights_digest, recorder.points


def train(group: Group, kind: type[Deep], shards: int) -> tuple[str, list[Point], list[int]]:
    """The curve, and how many buckets were under way in each step when the backward pass was over."""
    begun = []
    plain_total = OverlappedExchange.total

    def total(self: OverlappedExchange) -> Tensor:
        begun.append(self._begun)
        return plain_total(self)

    with buckets_of_a_layer(), mock.patch.object(OverlappedExchange, "total", total):
        torch.manual_seed(0)
        return (*fit(group, kind(), shards), begun)


@pytest.mark.parametrize(("kind", "shards"), [(Deep, 4), (Deep, 7), (Twice, 4), (Unused, 4)])
def test_the_curve_is_the_same_on_any_number_of_workers(ranks: Any, kind: type[Deep], shards: int) -> None:
    seen = [result for world_size in (1, 2, 3, 4) for result in ranks.run(world_size, train, kind, shards)]
    assert len({digest for digest, *_ in seen}) == 1
    assert all(points == seen[0][1] for _, points, _ in seen)


def train_by_graphs(group: Group, shards: int, by_graphs: bool) -> tuple[str, int]:
    """Digest of the weights, and how many shards were computed by graphs."""
    recorder = HostRecorder()
    with buckets_of_a_layer(), shards_by(recorder if by_graphs else None):
        torch.manual_seed(0)
        data = Images()
        data.load()
        result = Trainer(max_steps=12, batch_size=48, shards=shards).fit(Deep(), data, sgd, group=group)
    return result.weights_digest, recorder.replayed


@pytest.mark.parametrize("shards", [2, 4])
def test_what_is_recorded_and_compared_is_not_exchanged(ranks: Any, shards: int) -> None:
    ((alone, _),) = ranks.run(1, train_by_graphs, shards, False)
    for digest, replayed in ranks.run(2, train_by_graphs, shards, True):
        assert digest == alone
        assert replayed > 4


def test_buckets_are_exchanged_while_others_are_computed(ranks: Any) -> None:
    for _, _, begun in ranks.run(2, train, Deep, 4):
        assert all(count >= 2 for count in begun)


def test_gradients_that_come_in_parts_are_exchanged_when_they_are_whole(ranks: Any) -> None:
    for _, _, begun in ranks.run(2, train, Twice, 4):
        assert begun == [0] * 6


def train_wide(group: Group, hidden_units: int, shards: int) -> tuple[str, list[Point]]:
    torch.manual_seed(0)
    return fit(group, Wide(hidden_units), shards)


@pytest.mark.parametrize(("parameters", "shards", "world_size"), [(360_000, 3, 2), (150_000, 8, 3), (100_000, 7, 4)])
def test_ranks_that_receive_unequal_amounts_choose_the_same_exchange(
    ranks: Any, parameters: int, shards: int, world_size: int
) -> None:
    alone, *together = [
        curve for size in (1, world_size) for curve in ranks.run(size, train_wide, parameters // 75, shards)
    ]
    assert together == [alone] * world_size


def break_on_rank_0(group: Group) -> None:
    torch.manual_seed(0)
    with buckets_of_a_layer():
        fit(group, BreaksInThirdStep(group.rank == 0), shards=group.world_size, batch_size=96)


def test_a_model_that_raises_while_buckets_are_under_way_ends_training_everywhere(ranks: Any) -> None:
    failures = [failure for _, failure in ranks.outcomes(3, break_on_rank_0)]
    assert "ArithmeticError: no gradient here" in failures[0]
    assert all("PeerLost" in failure for failure in failures[1:])
