"""One rank by itself: the gradient, the metrics, and what is refused."""

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import (
    Classifier,
    DataError,
    DataModule,
    Examples,
    Listener,
    ModelError,
    Module,
    Point,
    Progress,
    Regressor,
    Trainer,
)
from lockstep.workers.engine.randomness import EpochOrder


class Numbers(DataModule):
    """Regression on random numbers in float64."""

    def __init__(self, train_size: int = 22, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(train_size + 9, 3, generator=generator, dtype=dtype)
        targets = torch.randn(train_size + 9, 1, generator=generator, dtype=dtype)
        self.train = Examples(inputs[9:], targets[9:])
        self.validation = Examples(inputs[:9], targets[:9])


class Net(Regressor):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


Kept = list[tuple[list[Tensor], list[Tensor]]]


class Keeping(torch.optim.SGD):
    """SGD that keeps what it was given: parameters and gradients."""

    def __init__(self, parameters: Any, kept: Kept, lr: float = 0.1) -> None:
        super().__init__(parameters, lr=lr)
        self.kept = kept

    def step(self, closure: Any = None) -> Any:
        parameters = self.param_groups[0]["params"]
        self.kept.append(([p.detach().clone() for p in parameters], [p.grad.clone() for p in parameters]))
        super().step()


class Recorder(Listener):
    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += points

    def values(self, name: str) -> dict[int, float]:
        return {point.step: point.value for point in self.points if point.name == name}


def set_parameters(module: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.data = value


# 22 examples in minibatches of 8 end with one of 6: 4 shards get 1, 2, 1 and 2 of them, of 8 shards 2 get none.
@pytest.mark.parametrize("shards", [1, 3, 4, 8])
def test_the_gradient_is_that_of_the_mean_loss_over_the_minibatch(shards: int) -> None:
    data, kept = Numbers(), Kept()
    trainer = Trainer(max_epochs=2, batch_size=8, shards=shards, seed=3)
    trainer.fit(Net(), data, lambda parameters: Keeping(parameters, kept))
    assert len(kept) == 6
    for step, (parameters, gradient) in enumerate(kept):
        epoch, batch = divmod(step, 3)
        minibatch = EpochOrder(22, 3, epoch)[8 * batch : min(8 * batch + 8, 22)]
        reference = Net()
        set_parameters(reference, parameters)
        outputs = reference(data.train.inputs[minibatch])
        reference.loss(outputs, data.train.targets[minibatch]).mean().backward()
        computed = Net()
        set_parameters(computed, gradient)
        for expected, actual in zip(reference.parameters(), computed.parameters(), strict=True):
            torch.testing.assert_close(actual.data, expected.grad, rtol=1e-12, atol=1e-14)


def test_a_minibatch_of_one_example_and_four_shards_has_the_gradient_of_that_example() -> None:
    data, kept = Numbers(train_size=9), Kept()
    Trainer(max_epochs=1, batch_size=8, shards=4).fit(Net(), data, lambda parameters: Keeping(parameters, kept))
    parameters, gradient = kept[1]
    reference, computed = Net(), Net()
    set_parameters(reference, parameters)
    set_parameters(computed, gradient)
    last = EpochOrder(9, 0, 0)[8:9]
    reference.loss(reference(data.train.inputs[last]), data.train.targets[last]).sum().backward()
    for expected, actual in zip(reference.parameters(), computed.parameters(), strict=True):
        torch.testing.assert_close(actual.data, expected.grad, rtol=1e-12, atol=1e-14)


def test_a_gradient_longer_than_the_limit_is_scaled_down_to_it_and_a_shorter_one_left() -> None:
    for limit, expected in ((0.01, 0.01), (1e6, None)):
        kept, recorder = Kept(), Recorder()
        trainer = Trainer(max_steps=1, batch_size=8, gradient_clip_norm=limit, log_every_steps=1)
        keeping: Any = partial(Keeping, kept=kept)
        trainer.fit(Net(), Numbers(), keeping, listener=recorder)
        norm = recorder.values("grad_norm")[1]  # before clipping
        assert norm > 0.01
        assert float(torch.cat([part.flatten() for part in kept[0][1]]).norm()) == pytest.approx(
            expected or norm, rel=1e-9
        )


def test_training_points_are_means_over_the_steps_since_the_last_one() -> None:
    fine, coarse = Recorder(), Recorder()
    for recorder, every in ((fine, 1), (coarse, 4)):
        trainer = Trainer(max_epochs=3, batch_size=8, log_every_steps=every)
        trainer.fit(Net(), Numbers(), lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=recorder)
    single = fine.values("train_loss")
    examples = {step: 6 if step % 3 == 0 else 8 for step in single}
    for start, stop in ((1, 4), (5, 8), (9, 9)):
        steps = range(start, stop + 1)
        mean = sum(single[step] * examples[step] for step in steps) / sum(examples[step] for step in steps)
        assert coarse.values("train_loss")[stop] == pytest.approx(mean, rel=1e-12)
    assert set(coarse.values("train_loss")) == {4, 8, 9}
    assert set(coarse.values("val_loss")) == {3, 6, 9}
    assert set(coarse.values("samples_per_second")) == {4, 8, 9}
    assert not {point.name for point in coarse.points} & {"train_accuracy", "val_accuracy"}


def test_validation_is_the_mean_over_the_validation_set() -> None:
    data, module, recorder = Numbers(), Net(), Recorder()
    trainer = Trainer(max_steps=5, batch_size=2, shards=2, evaluate_every_steps=2)
    trainer.fit(module, data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=recorder)
    expected = module.loss(module(data.validation.inputs), data.validation.targets).mean().item()
    assert set(recorder.values("val_loss")) == {2, 4, 5}
    assert recorder.values("val_loss")[5] == pytest.approx(expected, rel=1e-12)


class Counting(Net):
    """Says of every output that it is right."""

    def count_correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(float(len(outputs)))


@pytest.mark.parametrize(("model", "expected"), [(Net, {}), (Counting, {3: 1.0})])
def test_a_model_that_counts_no_right_answers_has_no_accuracy(model: type[Net], expected: dict[int, float]) -> None:
    data, recorder = Numbers(), Recorder()
    data.num_classes = 2
    trainer = Trainer(max_steps=3, batch_size=8, log_every_steps=3)
    trainer.fit(model(), data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=recorder)
    assert recorder.values("train_accuracy") == recorder.values("val_accuracy") == expected


def test_epochs_are_counted_with_their_fraction() -> None:
    recorder = Recorder()
    trainer = Trainer(max_steps=4, batch_size=8, log_every_steps=1)
    trainer.fit(Net(), Numbers(), lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=recorder)
    assert {point.step: point.epoch for point in recorder.points} == {1: 1 / 3, 2: 2 / 3, 3: 1.0, 4: 4 / 3}


def test_a_minibatch_larger_than_the_data_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match="23 is more than the 22 training examples; allowed: 1 to 22") as caught:
        Trainer(max_steps=1, batch_size=23).fit(Net(), Numbers(), lambda p: torch.optim.SGD(p, lr=0.1))
    assert caught.value.field == "batch_size"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": 0}, "max_steps is 0; allowed: whole numbers from 1 to 1,000,000,000"),
        ({"max_steps": -3}, "max_steps is -3; allowed: whole"),
        ({"max_epochs": 0}, "max_epochs is 0; allowed: whole numbers from 1 to 1,000,000"),
        ({"max_epochs": 1.5}, "max_epochs is 1.5; allowed: whole"),
        ({"batch_size": 0}, "batch_size is 0; allowed: whole"),
        ({"batch_size": None}, "batch_size is None; allowed: whole"),
        ({"batch_size": 50.0}, "batch_size is 50.0; allowed: whole"),
        ({"shards": 0}, "shards is 0; allowed: whole numbers from 1 to 1,024"),
        ({"shards": True}, "shards is True; allowed: whole"),
        ({"seed": -1}, "seed is -1; allowed: whole numbers from 0 to 9,223,372,036,854,775,807"),
        ({"seed": "x"}, "seed is 'x'; allowed: whole"),
        ({"log_every_steps": 0}, "log_every_steps is 0; allowed: whole"),
        ({"evaluate_every_steps": 0}, "evaluate_every_steps is 0; allowed: whole"),
        ({"threads": 0}, "threads is 0; allowed: whole"),
        (
            {"gradient_clip_norm": 0},
            "gradient_clip_norm is 0; allowed: finite numbers greater than 0, or None for none",
        ),
        ({"gradient_clip_norm": -1.0}, "gradient_clip_norm is -1.0; allowed"),
        ({"gradient_clip_norm": math.nan}, "gradient_clip_norm is nan; allowed"),
        ({"gradient_clip_norm": math.inf}, "gradient_clip_norm is inf; allowed"),
        ({"audit": "never"}, "audit is 'never'; allowed: 'start', 'always', 'off'"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_its_name_and_value(options: dict[str, Any], words: str) -> None:
    length = {} if "max_epochs" in options else {"max_steps": 2}
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        Trainer(**length | options)


@pytest.mark.parametrize("options", [{}, {"max_epochs": 1, "max_steps": 1}])
def test_exactly_one_length_of_training_is_needed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Trainer(**options)


class TokenModel(Module):
    """Losses per token, of which padding does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) ** 2 * (targets != 0)

    def weight_of(self, losses: Tensor, targets: Tensor) -> Tensor:
        return (targets != 0).sum()


class Tokens(DataModule):
    def __init__(self) -> None:
        targets = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0]])
        self.train = self.validation = Examples(torch.zeros(4, 3), targets)


def test_the_mean_is_over_what_the_loss_counts_not_over_examples() -> None:
    recorder = Recorder()
    Trainer(max_steps=1, batch_size=4, shards=3, log_every_steps=1).fit(
        TokenModel(), Tokens(), lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=recorder
    )
    assert recorder.values("train_loss")[1] == pytest.approx((1 + 4 + 9 + 1 + 1 + 1 + 4) / 7)


class Tied(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.frozen(self.second(self.first(inputs).relu()))


class Classes(DataModule):
    num_classes = 4

    def __init__(self) -> None:
        self.train = self.validation = Examples(torch.randn(8, 4), torch.arange(8) % 4)


def test_tied_parameters_stay_tied_and_frozen_ones_as_they_were() -> None:
    module = Tied()
    frozen, before = module.frozen.weight.clone(), module.first.weight.detach().clone()
    Trainer(max_steps=3, batch_size=4).fit(module, Classes(), lambda p: torch.optim.SGD(p, lr=0.1))
    assert module.first.weight is module.second.weight
    assert not torch.equal(module.first.weight, before)
    assert torch.equal(module.frozen.weight, frozen)


class Resetting(Net):
    """A model that undoes what the engine relies on."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.zero_grad(set_to_none=True)
        return super().forward(inputs)


def test_a_model_that_takes_its_gradients_away_is_caught_at_the_first_step() -> None:
    with pytest.raises(ModelError, match="replaced a parameter's gradient"):
        Trainer(max_steps=2, batch_size=8).fit(Resetting(), Numbers(), lambda p: torch.optim.SGD(p, lr=0.1))


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 3, sparse=True, dtype=torch.float64)


class Untrainable(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Mixed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body[0].float()


@pytest.mark.parametrize(("module", "words"), [(Sparse, "sparse"), (Untrainable, "no trainable"), (Mixed, "one dtype")])
def test_models_that_cannot_be_flattened_are_refused(module: type[Net], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Trainer(max_steps=1, batch_size=8).fit(module(), Numbers(), lambda p: torch.optim.SGD(p, lr=0.1))


def test_linear_regression_finds_the_true_weights() -> None:
    from lockstep.workers.datasets.synthetic import SyntheticRegression
    from lockstep.workers.models.linear import LinearRegression

    data = SyntheticRegression((2.0, -3.4), 4.2, 0.01, train_size=1000, validation_size=1000, seed=0)
    data.load()
    torch.manual_seed(0)
    module = LinearRegression(2)
    result = Trainer(max_epochs=10, batch_size=32).fit(module, data, lambda p: torch.optim.SGD(p, lr=0.03))
    layer = module.net[1]
    torch.testing.assert_close(layer.weight.data, torch.tensor([[2.0, -3.4]]), atol=0.01, rtol=0)
    torch.testing.assert_close(layer.bias.data, torch.tensor([4.2]), atol=0.01, rtol=0)
    assert math.isclose(result.final_metrics["learning_rate"], 0.03)
