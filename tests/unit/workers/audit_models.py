"""Models and data of all kinds, as people write them: what the audit lets pass, and what it must name."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lockstep.workers.engine import Classifier, DataModule, Examples, Module, Regressor


class Images(DataModule):
    """16 pixels squared in 10 classes."""

    num_classes = 10

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(70, 3, 16, 16, generator=generator)
        targets = torch.randint(0, 10, (70,), generator=generator)
        self.train, self.validation = Examples(inputs[20:], targets[20:]), Examples(inputs[:20], targets[:20])


class Points(DataModule):
    """Numbers from 8 numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(70, 8, generator=generator)
        targets = inputs.sum(1, keepdim=True).sin()
        self.train, self.validation = Examples(inputs[20:], targets[20:]), Examples(inputs[:20], targets[:20])


class Text(DataModule):
    """The next of 28 characters, at each place."""

    def __init__(self) -> None:
        text = torch.randint(1, 28, (70, 13), generator=torch.Generator().manual_seed(3))
        self.train = Examples(text[20:, :-1].contiguous(), text[20:, 1:].contiguous())
        self.validation = Examples(text[:20, :-1].contiguous(), text[:20, 1:].contiguous())


class Net(Classifier):
    """A body by itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Numbers(Regressor):
    """A small network, for others to do something with."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*(layers or (nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class LanguageModel(Module):
    """A recurrent one."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, is_tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(28, 16, padding_idx=0)
        self.recurrent = kind(16, 16, num_layers=2, dropout=0.2, batch_first=True)
        self.output = nn.Linear(16, 28)
        if is_tied:
            self.output.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.recurrent(self.embedding(inputs))[0])
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")


class Transformer(LanguageModel):
    """With a mask that is made once, and attention that is kept to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.Identity()  # type: ignore[assignment]
        self.attention = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
        self.feed_forward = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.weights_shown: Tensor | None = None
        self.mask: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        hidden = self.embedding(inputs)
        mixed, self.weights_shown = self.attention(hidden, hidden, hidden, attn_mask=self.mask, is_causal=True)
        outputs: Tensor = self.output(self.feed_forward(mixed, src_mask=self.mask, is_causal=True))
        return outputs


class VisionTransformer(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Parameter(torch.zeros(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.first.expand(len(inputs), -1, -1), patches), 1) + self.places
        outputs: Tensor = self.head(self.block(tokens)[:, 0])
        return outputs


class Variational(Module):
    """Draws in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(2, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        mean, deviation = self.encoder(inputs).chunk(2, 1)
        return (self.decoder(mean + torch.randn_like(mean) * deviation.exp()) - inputs) ** 2

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(1)


class Checkpointed(Numbers):
    """Computes its body again in the backward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(self.body, inputs.requires_grad_(), use_reentrant=True)
        return outputs


class Frozen(Numbers):
    """The first layer comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0].requires_grad_(False)


class Counting(Numbers):
    """Counts its calls in a buffer, as it should."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(inputs) * (self.calls + 1) ** -0.5


class Flipping(Images):
    """Augments, by all generators that are seeded."""

    def transform(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        flip = torch.rand(len(inputs), 1, 1, 1) < 0.5
        shift = random.randrange(3) + float(np.random.rand())
        return torch.where(flip, inputs.flip(-1), inputs) + shift


def convolutions() -> Net:
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
    return Net(*layers, nn.Linear(512, 10))


def lazy() -> Net:
    return Net(nn.LazyConv2d(8, 3, 2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))


def normed_by(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], Numbers]:
    return lambda: Numbers(norm(nn.Linear(8, 16)), nn.Tanh(), norm(nn.Linear(16, 1)))


def quantised() -> Numbers:
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    module = Numbers()
    options = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}
    module.body.insert(0, FakeQuantize(MovingAverageMinMaxObserver, **options))
    return module


HONEST: dict[str, tuple[Callable[[], Module], type[DataModule]]] = {
    "convolutions and batch normalisation": (convolutions, Images),
    "lazy layers": (lazy, Images),
    "instance normalisation": (
        lambda: Net(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(768, 10)),
        Images,
    ),
    "RNN": (lambda: LanguageModel(nn.RNN), Text),
    "LSTM": (lambda: LanguageModel(nn.LSTM), Text),
    "GRU, tied": (lambda: LanguageModel(is_tied=True), Text),
    "Transformer": (Transformer, Text),
    "vision transformer": (VisionTransformer, Images),
    "autoencoder that draws": (Variational, Points),
    "weight norm": (normed_by(nn.utils.parametrizations.weight_norm), Points),
    "weight norm, old": (normed_by(nn.utils.weight_norm), Points),
    "spectral norm": (normed_by(nn.utils.parametrizations.spectral_norm), Points),
    "spectral norm, old": (normed_by(nn.utils.spectral_norm), Points),
    "re-entrant checkpoint": (Checkpointed, Points),
    "frozen part": (Frozen, Points),
    "quantisation": (quantised, Points),
    "dropout in evaluation": (lambda: Numbers(nn.Linear(8, 16), Always(), nn.Linear(16, 1)), Points),
    "a counter in a buffer": (Counting, Points),
    "augmentation": (convolutions, Flipping),
}
"""Models that give one curve, with data for them."""


class Always(nn.Module):
    """Dropout that forgets whether it trains."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, 0.2)


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
        self.body[0].weight.data = self.body[0].weight.data.clone()
        return super().forward(inputs)


class Registering(Numbers):
    """Makes a buffer when it is trained first."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not hasattr(self, "places"):
            self.register_buffer("places", torch.arange(8.0))
        return super().forward(inputs)


class Secretly(Numbers):
    """Writes to a buffer in a way that PyTorch does not count."""

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


DISHONEST: dict[str, tuple[Callable[[], Module], type[DataModule], str]] = {
    "batch normalisation from scratch": (with_handmade_norm, Images, r"body\.0\.1\.moving_mean of HandmadeNorm"),
    "counter": (Warming, Points, "steps of Warming is a plain number"),
    "counter that matters later": (LateWarming, Points, "steps of LateWarming is a plain number"),
    "carried hidden state": (Carrying, Text, "hidden of Carrying is a tensor that is no buffer"),
    "generator of its own": (OwnGenerator, Points, "generator of OwnGenerator is a Generator of its own"),
    "system noise": (in_the_middle(FromTheSystem()), Points, r"body\.1\.1 \(FromTheSystem\) gave other bits"),
    "list": (in_the_middle(Remembering()), Points, r"body\.1\.1 \(Remembering\) gave other bits when a shard"),
    "list for validation": (
        in_the_middle(RememberingForValidation()),
        Points,
        r"body\.1\.1 \(RememberingForValidation\) gave other bits when validation",
    ),
    "frozen layer that moves": (Teacher, Points, r"the parameter teacher\.weight was changed in training"),
    "moved weights": (Moving, Points, r"the parameter body\.0\.weight was moved to other memory"),
    "late buffer": (Registering, Points, "places was registered while the model ran"),
    "secret buffer": (Secretly, Points, "the buffer total was changed in validation in a way that leaves no trace"),
    "data with a generator of its own": (Numbers, Shuffling, r"data\.draws of Shuffling is a Generator of its own"),
    "data with system noise": (Numbers, Noisy, r"the data \(transform\) gave other bits"),
}
"""Models and data that bend the curve, and what is told of them."""


def sgd(parameters: list[nn.Parameter]) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
