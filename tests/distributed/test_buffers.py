"""What a model keeps in buffers: right, and the same bits on any number of workers."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import DataModule, Examples, Group, ModelError, Origin, Point, Regressor, Trainer
from lockstep.workers.engine.randomness import EpochOrder
from lockstep.workers.engine.state.checkpoint import Checkpoints
from tests.distributed.test_one_curve import Recorder

EXAMPLES, BATCH_SIZE, SEED = 50, 22, 7  # minibatches of 22, 22 and 6: shards of 4 ranks are unequal, and of 6 too


class Points(DataModule):
    def __init__(self) -> None:
        random = torch.Generator().manual_seed(3)
        inputs = torch.randn(EXAMPLES + 10, 4, generator=random)
        targets = inputs.sum(1, keepdim=True)
        self.train, self.validation = (Examples(inputs[part], targets[part]) for part in (slice(10, None), slice(10)))


class Net(Regressor):
    """What all of these have in common; `keep` changes buffers while the model trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def keep(self, inputs: Tensor) -> None:
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.keep(inputs)
        outputs: Tensor = self.body(inputs)
        return outputs


class Counts(Net):
    """Sums, a maximum, a minimum from infinity on, and what was ever seen."""

    buffer_policies: Mapping[str, str] = {
        "examples": "sum",
        "positive": "sum",
        "largest": "max",
        "least": "min",
        "seen": "max",
    }

    examples: Tensor
    positive: Tensor
    largest: Tensor
    least: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("examples", torch.zeros((), dtype=torch.int64))
        self.register_buffer("positive", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("largest", torch.full((4,), -math.inf))
        self.register_buffer("least", torch.full((4,), math.inf))
        self.register_buffer("seen", torch.zeros(4, dtype=torch.bool))

    def keep(self, inputs: Tensor) -> None:
        self.examples += len(inputs)
        self.positive += (inputs > 0).sum(0)
        self.largest.copy_(torch.maximum(self.largest, inputs.amax(0)))
        self.least.copy_(torch.minimum(self.least, inputs.amin(0)))
        self.seen |= (inputs > 2).any(0)


class Moving(Net):
    """Averages that begin at infinity, a complex one, one of 16 bits, a counter; and what never changes."""

    mean: Tensor
    phases: Tensor
    narrow: Tensor
    calls: Tensor
    mask: Tensor
    ones: Tensor
    rotation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((4,), math.inf))
        self.register_buffer("phases", torch.polar(torch.ones(4), torch.arange(4.0)))
        self.register_buffer("narrow", torch.zeros(4, dtype=torch.bfloat16))
        self.register_buffer("calls", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("mask", torch.full((300, 300), -math.inf).triu(1))
        self.register_buffer("ones", torch.ones(1).expand(4))
        self.register_buffer("rotation", torch.polar(torch.ones(4), torch.ones(4)))

    def keep(self, inputs: Tensor) -> None:
        self.mean.copy_(inputs.mean(0) if self.mean[0].isinf() else 0.9 * self.mean + 0.1 * inputs.mean(0))
        self.phases.mul_(self.rotation).add_(inputs.mean(0) * self.ones + self.mask[1, 0])
        self.narrow.add_(inputs.mean(0))
        self.calls += 1


class Reassigning(Net):
    """Assigns a buffer anew, instead of changing it in place."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def keep(self, inputs: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)


class InPlace(Reassigning):
    def keep(self, inputs: Tensor) -> None:
        self.mean.mul_(0.9).add_(0.1 * inputs.mean(0))


class Seldom(Net):
    """Changes a buffer in the few shards that hold a large input, which few workers see; uses it in evaluation."""

    buffer_policies: Mapping[str, str] = {"largest": "max"}

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def keep(self, inputs: Tensor) -> None:
        if inputs.max() > 2.2 and inputs.max() > self.largest:
            self.largest.copy_(inputs.max())

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1 + self.largest.detach())


class CountsInValidation(Net):
    """Changes a buffer in validation too, on which training depends."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.body(inputs) * (1 + self.calls / 100)
        return outputs


class ReassigningLate(Net):
    """Assigns a buffer anew from the fourth step on, with the graph that has made it."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        if self.training:
            self.calls += 1
            if self.calls > 3:
                self.mean = 0.9 * self.mean + 0.1 * outputs.mean(0)
        return outputs - self.mean


class Shown(Net):
    """Shows the last batch of a validation, once the weights have moved, in what holds negative zeros before it."""

    shown: Tensor
    start: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shown", torch.full((4,), -0.0))
        self.register_buffer("start", self.get_parameter("body.0.weight").detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and (self.get_parameter("body.0.weight") - self.start).abs().sum() > 0.05:
            self.shown.copy_(inputs.mean(0))
        outputs: Tensor = self.body(inputs)
        return outputs


class Untouched(Net):
    """Changes some elements, and leaves negative zeros, infinities and what is no number where they are."""

    buffer_policies: Mapping[str, str] = {"total": "sum", "wide": "sum", "largest": "max"}

    def __init__(self) -> None:
        super().__init__()
        odd = torch.tensor([-0.0, math.inf, -math.inf, math.nan, 0.0])
        for name, dtype in (
            ("mean", torch.float32),
            ("total", torch.float32),
            ("wide", torch.float64),
            ("narrow", torch.bfloat16),
            ("phase", torch.complex64),
            ("largest", torch.float16),
        ):
            self.register_buffer(name, odd.to(dtype, copy=True))

    def keep(self, inputs: Tensor) -> None:
        for buffer in self.buffers():
            buffer[-1] += inputs.abs().mean().to(buffer.dtype)


def fit(
    group: Group, kind: type[Net], audit: str, max_steps: int = 6, folder: Path | None = None
) -> tuple[str, list[Point], dict[str, Tensor]]:
    torch.manual_seed(1)
    module, recorder = kind(), Recorder()
    trainer = Trainer(max_steps=max_steps, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=1, audit=audit)
    result = trainer.fit(
        module,
        Points(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        group=group,
        listener=recorder,
        origin=Origin(Checkpoints(str(folder), keep=9), every_steps=1) if folder else None,
    )
    return result.weights_digest, recorder.points, dict(module.named_buffers())


def on_any_number(ranks: Any, kind: type[Net], audit: str) -> dict[str, Tensor]:
    """Train on one, two and three ranks, see that all is the same, and return the buffers."""
    digest, points, buffers = ranks.run(1, fit, kind, audit)[0]
    for other_digest, other_points, other_buffers in (r for size in (2, 3) for r in ranks.run(size, fit, kind, audit)):
        assert other_points == points
        assert other_digest == digest
        for name, buffer in buffers.items():
            torch.testing.assert_close(other_buffers[name], buffer, rtol=0, atol=0)
    return buffers


@pytest.mark.parametrize("audit", ["off", "start"])
@pytest.mark.parametrize("kind", [Counts, Moving, Reassigning, ReassigningLate, Seldom, CountsInValidation, Shown])
def test_buffers_have_the_same_bits_on_any_number_of_workers(ranks: Any, kind: type[Net], audit: str) -> None:
    on_any_number(ranks, kind, audit)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_no_shard_changes_keeps_its_bits(ranks: Any, world_size: int) -> None:
    before = dict(Untouched().named_buffers())
    for _, _, buffers in ranks.run(world_size, fit, Untouched, "off"):
        for name, buffer in buffers.items():
            assert buffer[-1].abs() > 0, "some elements have changed"
            assert torch.equal(buffer[:-1].view(torch.uint8), before[name][:-1].view(torch.uint8)), name


def test_counts_and_extremes_are_those_of_all_examples(ranks: Any) -> None:
    buffers = on_any_number(ranks, Counts, "off")
    inputs = Points().train.inputs  # six steps are two epochs
    assert int(buffers["examples"]) == 2 * EXAMPLES
    assert buffers["positive"].tolist() == (2 * (inputs > 0).sum(0)).tolist()
    assert torch.equal(buffers["largest"], inputs.amax(0))
    assert torch.equal(buffers["least"], inputs.amin(0))
    assert torch.equal(buffers["seen"], (inputs > 2).any(0))


def test_an_average_that_began_at_infinity_is_the_mean_of_the_shards(ranks: Any) -> None:
    _, _, buffers = ranks.run(1, fit, Moving, "off", 1)[0]
    minibatch = Points().train.inputs[EpochOrder(EXAMPLES, SEED, 0)[0:BATCH_SIZE]]
    bounds = [shard * BATCH_SIZE // 6 for shard in range(7)]
    of_shards = torch.stack([minibatch[a:b].mean(0) for a, b in itertools.pairwise(bounds)]).double()
    torch.testing.assert_close(buffers["mean"].double(), of_shards.mean(0), rtol=1e-6, atol=1e-6)
    assert int(buffers["calls"]) == 1


def test_a_buffer_that_is_assigned_anew_is_as_good_as_one_changed_in_place(ranks: Any) -> None:
    assigned, in_place = (on_any_number(ranks, kind, "off")["mean"] for kind in (Reassigning, InPlace))
    assert assigned.abs().sum() > 0
    torch.testing.assert_close(assigned, in_place, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Counts, Moving, Seldom])
def test_buffers_go_on_from_a_checkpoint_on_another_number_of_workers(
    ranks: Any, tmp_path: Path, kind: type[Net]
) -> None:
    digest, points, buffers = ranks.run(1, fit, kind, "off")[0]
    ranks.run(2, fit, kind, "off", 4, tmp_path)
    for later_digest, later_points, later_buffers in ranks.run(3, fit, kind, "off", 6, tmp_path):
        assert later_digest == digest
        assert later_points == [point for point in points if point.step > 4]
        assert all(torch.equal(later_buffers[name], buffer) for name, buffer in buffers.items())


class Disagreeing(Counts):
    buffer_policies: Mapping[str, str] = {**Counts.buffer_policies, "examples": "same"}


@pytest.mark.parametrize("world_size", [1, 2])
def test_shards_that_must_make_the_same_and_do_not_end_training_with_the_name(ranks: Any, world_size: int) -> None:
    for _, failure in ranks.outcomes(world_size, fit, Disagreeing, "off"):
        assert f"{ModelError.__name__}: the shards of a minibatch left different values in examples" in failure
        assert 'buffer_policies = {"examples": "sum"}' in failure
