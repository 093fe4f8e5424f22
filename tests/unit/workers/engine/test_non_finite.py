"""A loss, a gradient or parameters that leave the finite numbers end training, and what was before them is kept."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import (
    NonFiniteGradient,
    NonFiniteLoss,
    NonFiniteParameters,
    NonFiniteStep,
    Origin,
    Trainer,
)
from lockstep.workers.engine.state.checkpoint import Checkpoints
from tests.unit.workers.engine.test_trainer import Keeping, Net, Numbers


def test_a_loss_that_leaves_the_finite_numbers_ends_training_and_names_the_step() -> None:
    module = Net(torch.float32)
    with pytest.raises(NonFiniteLoss, match=r"train_loss is (inf|nan) at step \d+; .*learning rate of SGD") as caught:
        Trainer(max_steps=2000, batch_size=8).fit(
            module, Numbers(dtype=torch.float32), lambda parameters: torch.optim.SGD(parameters, lr=1e6)
        )
    assert caught.value.step > 1


def test_a_loss_that_is_not_finite_before_anything_was_learnt_is_looked_for_in_data_and_model() -> None:
    data = Numbers(dtype=torch.float32)
    data.train.inputs[:] = torch.nan
    with pytest.raises(NonFiniteLoss, match=r"train_loss is nan at step 1; .*not finite in the data and in"):
        Trainer(max_steps=3, batch_size=8).fit(
            Net(torch.float32), data, lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        )


def test_the_learning_rate_of_a_loss_that_is_not_finite_is_that_of_its_optimizer() -> None:
    for factory, rate in (
        (partial(torch.optim.AdamW, lr=1e6), "learning rate of AdamW"),
        (lambda parameters: Keeping(parameters, [], lr=1e6), "learning rate of Keeping"),
    ):
        with pytest.raises((NonFiniteLoss, NonFiniteGradient, NonFiniteParameters), match=f"Try a lower {rate} or"):
            Trainer(max_steps=2000, batch_size=8).fit(Net(torch.float32), Numbers(dtype=torch.float32), factory)


class WithSpare(Net):
    """A network with a parameter that its loss does not depend on, and a buffer of infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("mask", torch.full((2,), -torch.inf))


class Spoiling(torch.optim.SGD):
    """SGD that makes a parameter no number at a step."""

    def __init__(self, parameters: Any, parameter: Tensor, at_step: int) -> None:
        super().__init__(parameters, lr=0.1)
        self.parameter, self.steps_left = parameter, at_step

    def step(self, closure: Any = None) -> Any:
        super().step()
        self.steps_left -= 1
        if self.steps_left == 0:
            self.parameter.data.view(-1)[1] = math.nan


def test_parameters_that_left_the_finite_numbers_end_training_and_are_in_no_checkpoint(tmp_path: Path) -> None:
    module, checkpoints = WithSpare(), Checkpoints(str(tmp_path), keep=10)
    with pytest.raises(NonFiniteParameters, match=r"spare is not finite after step 5\. .*learning rate of Spoiling"):
        Trainer(max_steps=2000, batch_size=8).fit(
            module, Numbers(), lambda p: Spoiling(p, module.spare, at_step=5), origin=Origin(checkpoints, every_steps=1)
        )
    assert checkpoints.steps() == [4, 3, 2, 1]


def test_the_state_before_a_loss_that_is_not_finite_is_in_no_checkpoint(tmp_path: Path) -> None:
    module, checkpoints = WithSpare(), Checkpoints(str(tmp_path), keep=10)
    with pytest.raises((NonFiniteLoss, NonFiniteParameters)):  # whichever is seen first
        Trainer(max_steps=2000, batch_size=8).fit(
            module,
            Numbers(),
            lambda p: Spoiling(p, module.get_parameter("body.0.weight"), at_step=5),
            origin=Origin(checkpoints, every_steps=1),
        )
    assert checkpoints.steps() == [4, 3, 2, 1]


class Diverging(Net):
    """A network whose loss, or its gradient alone, is no number from a step on, and which keeps a running mean."""

    def __init__(self, at_step: int, *, only_the_gradient: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, dtype=torch.float64, affine=False)
        self.at_pass, self.passes, self.only_the_gradient = 4 * (at_step - 1), 0, only_the_gradient

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.norm(super().forward(inputs))
        if self.training and torch.is_grad_enabled():
            self.passes += 1
            if self.passes > self.at_pass:
                return outputs + (outputs * 0).abs().sqrt() if self.only_the_gradient else outputs * math.nan
        return outputs


@pytest.mark.parametrize("only_the_gradient", [False, True])
def test_the_step_before_one_that_is_not_finite_is_kept_as_it_was(tmp_path: Path, only_the_gradient: bool) -> None:
    def train(at_step: int, folder: str, max_steps: int) -> Checkpoints:
        torch.manual_seed(3)
        checkpoints = Checkpoints(str(tmp_path / folder))
        Trainer(max_steps=max_steps, batch_size=8, audit="off").fit(
            Diverging(at_step, only_the_gradient=only_the_gradient),
            Numbers(),
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
            origin=Origin(checkpoints),
        )
        return checkpoints

    what = "the gradient of" if only_the_gradient else "train_loss is nan at step 8"
    with pytest.raises(NonFiniteStep, match=f"{what}.*those of step 7, of which there is a checkpoint") as caught:
        train(8, "diverging", 20)
    assert caught.value.step == 8
    there, undisturbed = Checkpoints(str(tmp_path / "diverging")), train(9_999, "undisturbed", 7)
    assert there.steps() == undisturbed.steps() == [7]
    ours, theirs = there.read(7), undisturbed.read(7)
    for mine, others in ((ours.model, theirs.model), (ours.training, theirs.training)):
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_no_checkpoint_is_promised_where_none_is_written(tmp_path: Path) -> None:
    for origin in (None, Origin(Checkpoints(str(tmp_path)))):
        with pytest.raises(NonFiniteStep, match=r"the parameters are those of step 0\. "):
            Trainer(max_steps=20, batch_size=8, audit="off").fit(
                Diverging(1), Numbers(), lambda parameters: torch.optim.SGD(parameters, lr=0.1), origin=origin
            )
    assert Checkpoints(str(tmp_path)).steps() == []


def test_a_run_whose_last_step_leaves_the_finite_numbers_does_not_succeed() -> None:
    module = WithSpare()
    with pytest.raises(NonFiniteParameters, match="spare is not finite after step 5"):
        Trainer(max_steps=5, batch_size=8).fit(module, Numbers(), lambda p: Spoiling(p, module.spare, at_step=5))
