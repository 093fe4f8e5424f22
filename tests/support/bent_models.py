"""Models and data, as people write them, that would give another curve on another number of workers."""

import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lockstep.workers.engine import DataModule, Module, Regressor
from tests.support.honest_models import Images, LanguageModel, Net, Numbers, Points, Text


class HandmadeNorm(nn.Module):
    """Batch normalisation from scratch, as books write it: what it has learnt of the data is in plain attributes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moving_mean, self.moving_var = torch.zeros(shape), torch.ones(shape)

    def forward(self, inputs: Tensor) -> Tensor:
        mean, var = self.moving_mean, self.moving_var
        if torch.is_grad_enabled():
            mean = inputs.mean((0, 2, 3), keepdim=True)
            var = ((inputs - mean) ** 2).mean((0, 2, 3), keepdim=True)
            self.moving_mean = (0.9 * self.moving_mean + 0.1 * mean).detach()
            self.moving_var = (0.9 * self.moving_var + 0.1 * var).detach()
        return self.gamma * (inputs - mean) / torch.sqrt(var + 1e-5) + self.beta


class Warming(Numbers):
    """Counts its steps in a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.steps += self.training
        return super().loss(outputs, targets) * min(1.0, self.steps / 10)


class LateWarming(Warming):
    """The same, which matters only later."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.steps += self.training
        return Regressor.loss(self, outputs, targets) * (1 if self.steps < 1000 else 2)


class Carrying(LanguageModel):
    """Goes on with the hidden state of the minibatch before."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        fits = self.hidden is not None and self.hidden.shape[1] == len(inputs)
        outputs, hidden = self.recurrent(self.embedding(inputs), self.hidden if fits else None)
        self.hidden = hidden.detach()
        scores: Tensor = self.output(outputs)
        return scores


class OwnGenerator(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + 0.1 * torch.randn(inputs.shape, generator=self.generator))


class FromTheSystem(nn.Module):
    """Noise that nobody can seed."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + int.from_bytes(os.urandom(2), "little") / 65536


class Remembering(nn.Module):
    """Keeps what it saw in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.detach().mean())
        return inputs + torch.stack(self.seen).mean()


class RememberingForValidation(Remembering):
    """The same, which shows in validation only."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen.append(inputs.detach().mean())
            return inputs
        return inputs + (torch.stack(self.seen).mean() if self.seen else 0)


class Turning(nn.Module):
    """Computes otherwise from some call on.

    Args:
        held: what it counts its calls in.
        count: counts one there and returns how many there were.
    """

    def __init__(self, held: Any, count: Callable[[Any], int]) -> None:
        super().__init__()
        self.held, self.count = held, count

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and self.count(self.held) > 20:
            return inputs * 1.5
        return inputs


class Calls:
    """How often something was called."""

    number = 0


def count_in(calls: Calls) -> int:
    calls.number += 1
    return calls.number


def count_in_tensor(tensor: Tensor) -> int:
    return int(tensor.add_(1))


def count_in_dict(values: dict[str, int]) -> int:
    values["calls"] += 1
    return values["calls"]


def count_in_list(values: list[int]) -> int:
    values.append(1)
    return len(values)


CALLS = {"calls": 0}
"""A state of the code."""


def turning(held: Callable[[], Any], count: Callable[[Any], int]) -> Callable[[], Numbers]:
    """A model whose state shows only later."""
    return lambda: in_the_middle(Turning(held(), count))()


class TurningByClass(Numbers):
    """Counts its calls in its class."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            TurningByClass.calls += 1
        return super().forward(inputs) * (1.5 if TurningByClass.calls % 100 > 20 else 1)


class Teacher(Numbers):
    """A frozen layer that follows the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(8, 1).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.teacher.weight.mul_(0.9).add_(0.1 * inputs.mean(0, keepdim=True))
        outputs: Tensor = super().forward(inputs) + 0.1 * self.teacher(inputs)
        return outputs


class Moving(Numbers):
    """Puts its weights elsewhere."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.get_parameter("body.0.weight")
        weight.data = weight.data.clone()
        return super().forward(inputs)


class Registering(Numbers):
    """Makes a buffer when it is trained first."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not hasattr(self, "places"):
            self.register_buffer("places", torch.arange(8.0))
        return super().forward(inputs)


class Secretly(Numbers):
    """Writes to a buffer in a way that PyTorch does not count."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.total.data += 1
        return super().forward(inputs)


class Shuffling(Points):
    """Augments with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng(0)

    def transform(self, inputs: Tensor) -> Tensor:
        return inputs + float(self.draws.random()) if self.training else inputs


class Noisy(Points):
    """Augments with what nobody can seed."""

    def transform(self, inputs: Tensor) -> Tensor:
        return inputs + int.from_bytes(os.urandom(2), "little") / 65536


def in_the_middle(layer: nn.Module) -> Callable[[], Numbers]:
    return lambda: Numbers(nn.Linear(8, 16), nn.Sequential(nn.Tanh(), layer), nn.Linear(16, 1))


def with_handmade_norm() -> Net:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), HandmadeNorm(8), nn.ReLU())
    return Net(encoder, nn.Flatten(), nn.Linear(512, 10))


BENT: dict[str, tuple[Callable[[], Module], type[DataModule], str]] = {
    "batch normalisation from scratch": (with_handmade_norm, Images, r"body\.0\.1\.moving_mean of HandmadeNorm"),
    "counter": (Warming, Points, "steps of Warming is a plain number"),
    "counter that matters later": (LateWarming, Points, "steps of LateWarming is a plain number"),
    "carried hidden state": (Carrying, Text, "hidden of Carrying is a tensor that is no buffer"),
    "generator of its own": (OwnGenerator, Points, "generator of OwnGenerator is a Generator of its own"),
    "system noise": (in_the_middle(FromTheSystem()), Points, r"body\.1\.1 \(FromTheSystem\) gave other bits"),
    "list": (in_the_middle(Remembering()), Points, r"body\.1\.1\.seen of Remembering is a list, and held something"),
    "list for validation": (
        in_the_middle(RememberingForValidation()),
        Points,
        r"body\.1\.1\.seen of RememberingForValidation is a list",
    ),
    "list that matters later": (turning(list, count_in_list), Points, r"body\.1\.1\.held of Turning is a list"),
    "deque that matters later": (turning(deque, count_in_list), Points, r"body\.1\.1\.held of Turning is a deque"),
    "dict that matters later": (turning(lambda: {"calls": 0}, count_in_dict), Points, r"held of Turning is a dict"),
    "tensor in a list that matters later": (
        turning(lambda: [torch.zeros(())], lambda held: count_in_tensor(held[0])),
        Points,
        r"body\.1\.1\.held of Turning is a list",
    ),
    "iterator that matters later": (turning(itertools.count, next), Points, r"held of Turning is a count"),
    "object that matters later": (turning(Calls, count_in), Points, r"held of Turning is a Calls"),
    "class attribute that matters later": (
        TurningByClass,
        Points,
        r"the class attribute TurningByClass\.calls is a plain number",
    ),
    "global variable that matters later": (
        turning(lambda: None, lambda _: count_in_dict(CALLS)),
        Points,
        r"the global variable tests\.support\.bent_models\.CALLS is a dict",
    ),
    "frozen layer that moves": (Teacher, Points, r"the parameter teacher\.weight was changed in training"),
    "moved weights": (Moving, Points, r"the parameter body\.0\.weight was moved to other memory"),
    "late buffer": (Registering, Points, "places was registered while the model ran"),
    "secret buffer": (Secretly, Points, "the buffer total was changed in validation in a way that leaves no trace"),
    "data with a generator of its own": (Numbers, Shuffling, r"data\.draws of Shuffling is a Generator of its own"),
    "data with system noise": (Numbers, Noisy, r"the data \(transform\) gave other bits"),
}
"""Models and data that bend the curve, and what is told of them."""
