"""Layers whose kernels add up in any order: each trains to the same bits again, or is refused by name."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lockstep.workers.engine import Classifier, ModelError, Trainer
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, the_same
from tests.machines.gpu_check.work import SEED, data_of, momentum

CHANNELS = 4


class Upsampled(nn.Module):
    """nn.functional.interpolate, which is no layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.interpolate(inputs, scale_factor=2, mode="bilinear")


class Bag(nn.Module):
    """An embedding bag over pixels."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(16, CHANNELS, mode=mode)

    def forward(self, inputs: Tensor) -> Tensor:
        numbers = (inputs.detach()[:, 0].flatten(1).abs() * 100).long() % 16
        return inputs[:, :, ::4, ::4] * self.bag(numbers)[:, :, None, None]


class Gathered(nn.Module):
    """Indexing, gather, scatter_add and cumsum, whose gradients add up at places that are met twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 28)

    def forward(self, inputs: Tensor) -> Tensor:
        numbers = (inputs.detach()[:, 0, :, 0].abs() * 100).long() % 8
        rows = inputs[:, 0] + self.table(numbers)
        gathered = rows.gather(2, numbers[:, None, :].expand_as(rows)) + rows[:, numbers[0] % 28]
        return torch.zeros_like(rows).scatter_add(2, numbers[:, :, None].expand_as(rows), gathered).cumsum(2)[:, None]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "AdaptiveAvgPool2d(7)": lambda: nn.AdaptiveAvgPool2d(7),
    "AdaptiveAvgPool2d(5)": lambda: nn.AdaptiveAvgPool2d(5),
    "AdaptiveMaxPool2d(5)": lambda: nn.AdaptiveMaxPool2d(5),
    "MaxPool2d, overlapping": lambda: nn.MaxPool2d(3, stride=1),
    "AvgPool2d, overlapping": lambda: nn.AvgPool2d(3, stride=1),
    "FractionalMaxPool2d": lambda: nn.FractionalMaxPool2d(2, output_size=9),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(2),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d(2),
    "Upsample, nearest": lambda: nn.Upsample(scale_factor=2),
    "interpolate, bilinear": Upsampled,
    "EmbeddingBag, sum": lambda: Bag("sum"),
    "EmbeddingBag, max": lambda: Bag("max"),
    "indices that meet twice": Gathered,
    "GroupNorm": lambda: nn.GroupNorm(2, CHANNELS),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "Conv2d, dilated": lambda: nn.Conv2d(CHANNELS, 6, 3, dilation=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(CHANNELS, 6, 3, stride=2),
}


class Around(Classifier):
    """One layer between others."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Conv2d(1, CHANNELS, 3, padding=1), layer, nn.LazyLinear(10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.layer(self.first(inputs)).flatten(1))
        return outputs


def check(plan: Plan) -> Iterator[Row]:
    """All layers, and one that would talk to other workers."""
    for name, layer in LAYERS.items():
        yield attempt(name, partial(of_one, plan, name, layer))
    try:
        outcome = train(plan, lambda: nn.SyncBatchNorm(CHANNELS))
    except ModelError as error:
        outcome = str(error)
    is_named = "layer is a layer of torch's SyncBatchNorm" in outcome
    yield judge("SyncBatchNorm", is_named, "refused" if is_named else outcome[:60], "refused by name", [outcome])


def of_one(plan: Plan, name: str, layer: Callable[[], nn.Module]) -> Row:
    """Twice the same bits, or a refusal that says what to do."""
    try:
        row = the_same(name, {f"time {time}": train(plan, layer) for time in (1, 2, 3)})
        row.wanted = "one digest, or refused by name"
    except ModelError as error:
        return judge(name, True, "refused by name", "one digest, or refused by name", [str(error)], words=str(error))
    except RuntimeError as error:
        return judge(name, False, f"{type(error).__name__}", "one digest, or refused by name", [str(error)])
    return row


def train(plan: Plan, layer: Callable[[], nn.Module]) -> str:
    """Digest after a few steps."""
    torch.manual_seed(SEED)
    data = data_of(plan.work("softmax_regression"))
    trainer = Trainer(max_steps=3, batch_size=64, shards=2, seed=SEED, evaluate_every_steps=10**9)
    return trainer.fit(Around(layer()), data, momentum, device=plan.device).weights_digest
