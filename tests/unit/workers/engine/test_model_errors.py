"""What a model or its optimizer must not do is named, with what to do instead, and leaves the weights alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lockstep.workers.engine import (
    Classifier,
    DataModule,
    Examples,
    ModelError,
    Module,
    NonFiniteGradient,
    Regressor,
    Trainer,
)
from tests.unit.workers.engine.test_trainer import Recorder


class Points(DataModule):
    """Regression, or classes of which there are three."""

    def __init__(self, classes: bool = False, column: bool = True) -> None:
        inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
        targets = inputs[:, :3].argmax(1) if classes else inputs.sum(1, keepdim=column)
        self.train = self.validation = Examples(inputs, targets)
        self.num_classes = 3 if classes else None


class Net(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Scores(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def fit(module: Module, data: DataModule | None = None, optimizer: Any = sgd, **options: Any) -> Recorder:
    recorder = Recorder()
    settings: dict[str, Any] = {"max_steps": 6, "batch_size": 10, "log_every_steps": 1, "audit": "off"}
    trainer = Trainer(**settings | options)
    trainer.fit(module, data or Points(), optimizer, listener=recorder)
    return recorder


class MovesParameters(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            weight = self.get_parameter("body.0.weight")
            weight.data = weight.data.clamp(-0.5, 0.5)
        return super().forward(inputs)


class ClampsParameters(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.get_parameter("body.2.bias").clamp_(-0.1, 0.1)
        return super().forward(inputs)


class Late(Net):
    """Does something from the third step on, in the last of its four shards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == 12:
            self.act()
        return super().forward(inputs)

    def act(self) -> None:
        raise NotImplementedError


class TakesGradientsLate(Late):
    def act(self) -> None:
        self.zero_grad()


class FreezesLate(Late):
    def act(self) -> None:
        self.body[0].bias.requires_grad_(False)


class UnfreezesLate(Late):
    def __init__(self) -> None:
        super().__init__()
        self.body[0].requires_grad_(False)

    def act(self) -> None:
        self.body[0].requires_grad_(True)


class ReplacesLate(Late):
    def act(self) -> None:
        self.body[2].bias = nn.Parameter(torch.zeros(1))


class WritesUnseenLate(Late):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def act(self) -> None:
        self.scale.data.mul_(2)


class RegistersLate(Late):
    def act(self) -> None:
        self.register_buffer("places", torch.zeros(4))


class ChangesFrozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(4, 1).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.teacher.weight.mul_(0.9)
        return super().forward(inputs)


class TiedByTranspose(Net):
    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(6, 4)
        self.back.weight = nn.Parameter(self.get_parameter("body.0.weight").t())


class Expanded(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1).expand(4))


class AfterAccumulation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.get_parameter("body.0.bias").register_post_accumulate_grad_hook(lambda parameter: None)


class SparseLookup(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = functional.embedding((inputs[:, 0] > 0).long(), self.table, sparse=True)
        return super().forward(inputs + rows)


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.ones(2, dtype=torch.complex64))


class UnknownPolicy(Net):
    buffer_policies = {"body.mean": "mean"}  # noqa: RUF012


class WrongPolicy(Net):
    buffer_policies = {"flag": "sum"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.tensor(False))


class MeanLoss(Scores):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


class MeanLossOfOne(MeanLoss):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).view(1)


class EachWithEach(Net):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) ** 2


class NegativeWeight(Net):
    def weight_of(self, losses: Tensor, targets: Tensor) -> float:
        return -1.0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (MovesParameters, r"moved body\.0\.weight to other memory"),
        (ClampsParameters, r"changed body\.2\.bias while a shard was computed.*a changed copy"),
        (TakesGradientsLate, r"that of body\.0\.weight; gradients are left to the engine"),
        (FreezesLate, r"body\.0\.bias was frozen in training"),
        (UnfreezesLate, r"body\.0\.weight was frozen when training began"),
        (ReplacesLate, r"replaced or removed the parameter body\.2\.bias"),
        (WritesUnseenLate, r"scale was changed in a way that leaves no trace.*copy_"),
        (RegistersLate, r"places was made in training.*in the constructor"),
        (ChangesFrozen, r"teacher\.weight .* frozen parameter.*register_buffer"),
        (TiedByTranspose, r"back\.weight shares memory with body\.0\.weight.*one Parameter"),
        (Expanded, r"scale shares memory with itself"),
        (AfterAccumulation, r"body\.0\.bias has a hook after its gradient"),
        (SparseLookup, r"gradient of table is sparse.*sparse=False"),
        (Complex, r"phases is torch\.complex64.*view_as_complex"),
        (UnknownPolicy, r"names body\.mean, which is no buffer"),
        (WrongPolicy, r"'sum' of flag, which is torch\.bool; allowed: max, min, same"),
        (NegativeWeight, r"weight_of returned numbers whose sum is -4\.0 at step 1"),
    ],
)
def test_a_model_that_cannot_be_trained_exactly_is_named(kind: type[Net], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fit(kind())


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (MeanLoss, Points(classes=True), "single number, which is a mean or sum already.*reduction="),
        (MeanLossOfOne, Points(classes=True), "one loss for any number of examples.*reduction="),
        (EachWithEach, Points(column=False), r"a loss for each pair of examples, of shape \(n, n\)"),
    ],
)
def test_a_loss_that_is_not_one_of_each_example_is_refused_before_anything_is_trained(
    kind: type[Module], data: DataModule, words: str
) -> None:
    module = kind()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        fit(module, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_targets_of_another_shape_than_the_outputs_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"outputs have the shape \(2, 1\) and the targets \(2,\).*unsqueeze"):
        fit(Net(), Points(column=False))


def with_attribute(name: str, value: Callable[[], Any], base: type[Module] = Scores) -> Module:
    class Own(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, value())

    return Own()


def test_a_loss_that_is_a_layer_is_the_loss_and_must_not_reduce() -> None:
    with pytest.raises(ValueError, match=r"loss has reduction='mean'.*set reduction=\"none\""):
        with_attribute("loss", nn.CrossEntropyLoss)
    torch.manual_seed(0)
    module = with_attribute("loss", lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), reduction="none"))
    data = Points(classes=True)
    losses = module.loss(module(data.train.inputs), data.train.targets)
    expected = functional.cross_entropy(
        module(data.train.inputs), data.train.targets, torch.tensor([1.0, 2.0, 3.0]), reduction="none"
    )
    assert torch.equal(losses, expected)
    recorder = fit(module, data, lambda parameters: torch.optim.SGD(parameters, lr=0.0), batch_size=40)
    assert recorder.values("train_loss")[6] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert "loss.weight" in module.state_dict()


@pytest.mark.parametrize("name", ["weight", "correct"])
@pytest.mark.parametrize("value", [lambda: nn.Parameter(torch.ones(3)), lambda: 0.3, lambda: None])
def test_names_that_users_take_are_theirs(name: str, value: Callable[[], Any]) -> None:
    assert fit(with_attribute(name, value), Points(classes=True)).values("train_accuracy")


@pytest.mark.parametrize("name", ["loss", "weight_of", "count_correct"])
def test_an_attribute_that_would_hide_a_method_is_refused_where_it_is_set(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Own\.{name} is a method that the engine calls.*another name"):
        with_attribute(name, lambda: nn.Parameter(torch.ones(3)))


def test_a_method_of_an_earlier_name_is_not_silently_ignored() -> None:
    with pytest.raises(TypeError, match="the engine calls weight_of"):
        type("Own", (Net,), {"weight": lambda self, losses, targets: 1.0})


class RootOfZero(Net):
    """Its loss is finite, and its gradient is not, from the fourth minibatch of four shards on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += self.training
        root = (outputs - outputs.detach()).abs().sqrt().sum(1) if self.calls > 12 else 0.0
        return super().loss(outputs, targets) + root


def test_a_gradient_that_is_not_finite_leaves_the_parameters_as_they_were() -> None:
    torch.manual_seed(0)
    module, reference = RootOfZero(), Net()
    reference.load_state_dict(module.state_dict())
    with pytest.raises(NonFiniteGradient, match=r"body\.0\.weight is not finite at step 4, whose train_loss is \d"):
        fit(module, log_every_steps=100)
    fit(reference, max_steps=3, log_every_steps=100)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)


class NothingCounts(Net):
    """The second minibatch is all padding."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += self.training
        self.counts = float(not 4 < self.calls <= 8)
        return super().loss(outputs, targets) * self.counts

    def weight_of(self, losses: Tensor, targets: Tensor) -> float:
        return self.counts * losses.numel()


def test_a_minibatch_of_which_nothing_counts_changes_nothing_and_has_no_loss() -> None:
    module = NothingCounts()
    recorder = fit(module, max_steps=3)
    assert set(recorder.values("train_loss")) == {1, 3}
    assert all(math.isfinite(value) for value in recorder.values("train_loss").values())
    assert recorder.values("grad_norm")[2] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())
