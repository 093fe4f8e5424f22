"""Optimizers that cannot be used are named, and gradients are what the optimizer should get."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.workers.engine import Listener, ModelError, Trainer
from tests.unit.workers.engine.test_model_errors import Net, Points, fit, sgd


class Notes(Listener):
    def __init__(self) -> None:
        self.words: list[str] = []

    def noted(self, words: str) -> None:
        self.words.append(words)


@pytest.mark.parametrize(("decay", "told"), [(0.1, 1), (0.0, 0)])
def test_a_parameter_that_is_not_used_is_told_where_it_decays(decay: float, told: int) -> None:
    module, notes = Net(), Notes()
    module.spare = nn.Linear(2, 2)
    trainer = Trainer(max_steps=2, batch_size=10, audit="off")
    trainer.fit(
        module, Points(), lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=decay), listener=notes
    )
    assert len(notes.words) == told
    assert all("spare.weight got no gradient" in words and "requires_grad_(False)" in words for words in notes.words)


def test_a_hook_that_sees_the_gradient_of_a_shard_is_told() -> None:
    module, notes = Net(), Notes()
    module.get_parameter("body.0.bias").register_hook(lambda gradient: gradient.clamp(-1, 1))
    Trainer(max_steps=2, batch_size=10, audit="off").fit(module, Points(), sgd, listener=notes)
    assert len(notes.words) == 1
    assert notes.words[0].startswith("body.0.bias has a hook on its gradient")


def stepping_schedule(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (stepping_schedule, r"the optimizer's lr changed from 0\.1 to 0\.05"),
        (lambda parameters: torch.optim.LBFGS(parameters), "LBFGS computes the loss several times.*no closure"),
        (lambda parameters: torch.optim.SparseAdam(parameters), "SparseAdam needs sparse gradients.*use Adam"),
        (lambda parameters: sgd([nn.Parameter(torch.zeros(2))]), "over parameters that are not trained here"),
        (lambda parameters: None, "the optimizer is a NoneType; return a torch.optim.Optimizer"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_named(optimizer: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fit(Net(), optimizer=optimizer)


class PartsLater(Net):
    """Runs a layer in several re-entrant checkpoints from the second step on, but not in the first."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.is_reentrant = True

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        hidden = self.first(inputs)
        for _ in range(3):
            if self.training and self.is_reentrant and self.calls > 1:
                hidden = checkpoint(lambda x: self.layer(x).tanh(), hidden, use_reentrant=True)
            else:
                hidden = self.layer(hidden).tanh()
        return super().forward(hidden)


def test_gradients_that_come_in_parts_from_a_later_step_on_are_summed_right() -> None:
    torch.manual_seed(0)
    module, plain = PartsLater(), PartsLater()
    plain.load_state_dict(module.state_dict())
    plain.is_reentrant = False
    fit(module)
    fit(plain)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


class CountsCalls(Net):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs)


def test_what_runs_before_and_between_steps_leaves_buffers_alone() -> None:
    module = CountsCalls()
    fit(module, max_steps=5, evaluate_every_steps=2)
    assert int(module.calls) == 5, "one for each step"


def test_flat_or_not_an_optimizer_that_treats_numbers_alone_gives_the_same() -> None:
    weights = []
    for split in (False, True):
        torch.manual_seed(0)
        module = Net()

        def adam(parameters: Any, split: bool = split) -> torch.optim.Optimizer:
            groups = [{"params": [parameter]} for parameter in parameters] if split else parameters
            return torch.optim.Adam(groups, lr=0.01)

        fit(module, optimizer=adam)
        weights.append(module.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-6)


class Interleaved(Net):
    """Has the weights of two layers in the columns of one tensor, as a layer that is split in two does."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(6, 8)
        self.body[0].weight = nn.Parameter(both[:, :4])
        self.other = nn.Linear(4, 6)
        self.other.weight = nn.Parameter(both[:, 4:])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body[1:](self.body[0](inputs) + self.other(inputs))
        return outputs


def test_weights_that_lie_beside_each_other_share_no_memory() -> None:
    module = Interleaved()
    fit(module)
    fit(module)  # whose weights lie in one vector now
    with torch.no_grad():
        module.get_parameter("body.0.weight").zero_()
    assert module.other.weight.abs().sum() > 0
