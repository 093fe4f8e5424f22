"""Models and data of all kinds, as people write them, that give one curve."""

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

    def __init__(self, kind: Callable[..., nn.RNNBase] = nn.GRU, is_tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(28, 16, padding_idx=0)
        self.recurrent: nn.Module = kind(16, 16, num_layers=2, dropout=0.2, batch_first=True)
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
        self.recurrent = nn.Identity()
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

    calls: Tensor

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


class ByFunction(nn.Module):
    """Batch normalisation over buffers of its own, which torch changes without counting it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        mean, var = self.get_buffer("mean"), self.get_buffer("var")
        return functional.batch_norm(inputs, mean, var, training=self.training)


def scripted() -> Numbers:
    body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    return Numbers(torch.jit.script(body))


class Shifting(Numbers):
    """Assigns a buffer anew, instead of changing it in place, and computes with it."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        return super().forward(inputs - self.mean)


class RemembersTheLast(Numbers):
    """Keeps what it saw last, in a list and in a dict, for whoever wants to see it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[Tensor | None] = [None]
        self.sizes: dict[int, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.last[0] = outputs.detach()
        self.sizes.setdefault(len(inputs), torch.ones(len(inputs)))
        return outputs


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
    "batch normalisation by a function": (lambda: Numbers(nn.Linear(8, 16), ByFunction(16), nn.Linear(16, 1)), Points),
    "batch normalisation in TorchScript": (scripted, Points),
    "remembers the last outputs": (RemembersTheLast, Points),
    "a buffer that is assigned anew": (Shifting, Points),
}
"""Models that give one curve, with data for them."""


class Always(nn.Module):
    """Dropout that forgets whether it trains."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, 0.2)


def sgd(parameters: list[nn.Parameter]) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
