"""Models and optimizers of other kinds than those of a spec: right, and the same bits on any number of workers."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.workers.engine import Classifier, DataModule, Examples, Group, Origin, Point, Trainer
from lockstep.workers.engine.randomness import EpochOrder
from lockstep.workers.engine.state.checkpoint import Checkpoints
from tests.distributed.test_one_curve import Recorder

CLASSES, EXAMPLES, SEED = 4, 1100, 7


class Points(DataModule):
    num_classes = CLASSES

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        inputs = torch.randn(EXAMPLES, 8, generator=torch.Generator().manual_seed(3))
        targets = inputs[:, :CLASSES].argmax(1)
        self.train = Examples(inputs.to(dtype), targets)
        self.validation = Examples(inputs[:50].to(dtype), targets[:50])


class Net(Classifier):
    dtype = torch.float32
    body: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, CLASSES)).to(self.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Bfloat16(Net):
    dtype = torch.bfloat16


class Float16(Net):
    dtype = torch.float16


class Images(Net):
    """Takes the inputs for images, in channels_last; a normalisation is held in evaluation mode."""

    body: nn.Sequential

    def __init__(self) -> None:
        Classifier.__init__(self)
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 2), nn.BatchNorm2d(8), nn.Flatten()
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.body.append(nn.Linear(8, CLASSES))
        self.body[1].eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.view(-1, 2, 2, 2).to(memory_format=torch.channels_last))


class PartsLater(Net):
    """From the second step on, some shards run a layer in several re-entrant checkpoints."""

    width = 8
    calls: Tensor

    def __init__(self) -> None:
        Classifier.__init__(self)
        self.first, self.layer = nn.Linear(8, self.width), nn.Linear(self.width, self.width)
        self.body = nn.Linear(self.width, CLASSES)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        hidden = self.first(inputs)
        for _ in range(3):
            if self.training and self.calls > 1 and inputs.max() > 3:
                hidden = checkpoint(lambda x: self.layer(x).tanh(), hidden, use_reentrant=True)
            else:
                hidden = self.layer(hidden).tanh()
        return super().forward(hidden)


class LargePartsLater(PartsLater):
    """The same in several buckets, of which the first is exchanged once a part of its gradients has come."""

    width = 1200


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=0.05)


def in_groups(parameters: Any) -> torch.optim.Optimizer:
    matrices, others = ([p for p in parameters if (p.dim() > 1) is many] for many in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": others}]
    return torch.optim.AdamW(groups, lr=0.01)


class ByLayer(torch.optim.SGD):
    """Scales each parameter's gradient to its norm, and counts its steps in its group."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for parameter in group["params"]:
                parameter.grad.mul_(0.1 * parameter.detach().norm() / (parameter.grad.norm() * group["steps"]))
        super().step(closure)


def by_layer(parameters: Any) -> torch.optim.Optimizer:
    return ByLayer(parameters, lr=0.1)


def captured(parameters: Any) -> torch.optim.Optimizer:
    """Over the module's own parameters, whatever it is given."""
    return sgd(captured.module.parameters())  # type: ignore[attr-defined]


def fit(
    group: Group,
    kind: type[Net],
    optimizer: Callable[..., Any] = sgd,
    max_steps: int = 4,
    folder: Path | None = None,
    batch_size: int = 1013,
) -> tuple[str, list[Point], dict[str, Tensor]]:
    torch.manual_seed(1)
    module, recorder = kind(), Recorder()
    captured.module = module  # type: ignore[attr-defined]
    trainer = Trainer(max_steps=max_steps, batch_size=batch_size, shards=4, seed=SEED, log_every_steps=1, audit="off")
    result = trainer.fit(
        module,
        Points(kind.dtype),
        optimizer,
        group=group,
        listener=recorder,
        origin=Origin(Checkpoints(str(folder), keep=9), every_steps=1) if folder else None,
    )
    return result.weights_digest, recorder.points, module.state_dict()


def on_any_number(ranks: Any, *args: Any) -> tuple[list[Point], dict[str, Tensor]]:
    """What every rank of one, two and three saw, which must be the same."""
    digest, points, weights = ranks.run(1, fit, *args)[0]
    for other_digest, other_points, _ in (result for size in (2, 3) for result in ranks.run(size, fit, *args)):
        assert other_points == points
        assert other_digest == digest
    return points, weights


@pytest.mark.parametrize("kind", [Bfloat16, Float16])
def test_metrics_of_a_model_of_16_bits_are_exact_on_any_number_of_workers(ranks: Any, kind: type[Net]) -> None:
    points, _ = on_any_number(ranks, kind)
    torch.manual_seed(1)
    module, data = kind(), Points(kind.dtype)
    minibatch = EpochOrder(EXAMPLES, SEED, 0)[0:1013]
    with torch.no_grad():
        outputs = module(data.train.inputs[minibatch])
        losses = module.loss(outputs, data.train.targets[minibatch])
        correct = module.count_correct(outputs, data.train.targets[minibatch])
    seen = {point.name: point.value for point in points if point.step == 1}
    assert seen["train_loss"] == pytest.approx(losses.double().mean().item(), rel=1e-4)
    assert seen["train_accuracy"] == pytest.approx(int(correct) / 1013, rel=1e-6)


def test_layouts_and_modes_of_layers_hold_on_any_number_of_workers(ranks: Any) -> None:
    _, weights = on_any_number(ranks, Images)
    assert weights["body.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert int(weights["body.1.num_batches_tracked"]) == 0, "it was in evaluation mode from the beginning"
    assert int(weights["body.3.num_batches_tracked"]) == 4


@pytest.mark.parametrize("kind", [PartsLater, LargePartsLater])
def test_gradients_that_come_in_parts_later_give_the_same_bits_on_any_number_of_workers(
    ranks: Any, kind: type[Net]
) -> None:
    on_any_number(ranks, kind, sgd, 4, None, 40)


@pytest.mark.parametrize("optimizer", [adafactor, in_groups, by_layer, captured])
def test_an_optimizer_computes_what_it_does_in_plain_pytorch_on_any_number_of_workers(
    ranks: Any, optimizer: Callable[..., Any]
) -> None:
    _, weights = on_any_number(ranks, Net, optimizer)
    torch.manual_seed(1)
    module, data = Net(), Points()
    plain = (sgd if optimizer is captured else optimizer)(list(module.parameters()))
    for step in range(4):
        epoch, batch = divmod(step, 2)
        minibatch = EpochOrder(EXAMPLES, SEED, epoch)[1013 * batch : min(1013 * (batch + 1), EXAMPLES)]
        plain.zero_grad()
        module.loss(module(data.train.inputs[minibatch]), data.train.targets[minibatch]).mean().backward()
        plain.step()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [adafactor, in_groups, by_layer])
def test_an_optimizer_goes_on_from_a_checkpoint_on_another_number_of_workers(
    ranks: Any, tmp_path: Path, optimizer: Callable[..., Any]
) -> None:
    digest, points, _ = ranks.run(1, fit, Net, optimizer, 5)[0]
    ranks.run(2, fit, Net, optimizer, 3, tmp_path)
    for later_digest, later_points, _ in ranks.run(3, fit, Net, optimizer, 5, tmp_path):
        assert later_digest == digest
        assert later_points == [point for point in points if point.step > 3]


class Recurrent(Net):
    """Flattens its weights in forward, as cuDNN is served best."""

    def __init__(self) -> None:
        Classifier.__init__(self)
        self.layer, self.out = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        self.layer.flatten_parameters()
        outputs: Tensor = self.out(self.layer(inputs.view(-1, 4, 2))[0][:, -1])
        return outputs


def fit_where_flattening_moves(group: Group) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after, where `flatten_parameters` moves weights to other memory, as it does on a GPU."""

    def move(layer: nn.RNNBase) -> None:
        for weight in layer.parameters():
            weight.data = weight.data.clone()

    with mock.patch.object(nn.RNNBase, "flatten_parameters", move):
        torch.manual_seed(1)
        before = copy.deepcopy(Recurrent().state_dict())
        return before, fit(group, Recurrent)[2]


def test_a_recurrent_layer_that_flattens_its_weights_learns(ranks: Any) -> None:
    results = [result for size in (1, 2) for result in ranks.run(size, fit_where_flattening_moves)]
    before, after = results[0]
    assert all(not torch.equal(after[name], tensor) and math.isfinite(tensor.sum()) for name, tensor in before.items())
    assert all(torch.equal(other[name], after[name]) for _, other in results for name in after)
