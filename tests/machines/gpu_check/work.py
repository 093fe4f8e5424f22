"""Training runs that every process can make by itself: models, made-up data, and how long."""

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import (
    Classifier,
    DataModule,
    Examples,
    Group,
    Ledger,
    Listener,
    Module,
    Origin,
    Point,
    Progress,
    Regroup,
    Result,
    Trainer,
    initialisation_seed,
)
from lockstep.workers.models import build_model

SEED = 7
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Convolutions(Classifier):
    """Convolution, batch normalisation, dropout, pooling: what keeps state, draws at random, or asks cuDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.ConvTranspose2d(32, 16, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Recurrent(Classifier):
    """Two layers of an LSTM with dropout between them, over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(28, 32, num_layers=2, dropout=0.2, batch_first=True)
        self.last = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.recurrent(inputs.squeeze(1))[0][:, -1])
        return outputs


class Attention(Classifier):
    """One layer of a transformer with dropout, over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(28, 32)
        self.encode = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.last = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.encode(self.first(inputs.squeeze(1))).mean(1))
        return outputs


class Deep(Classifier):
    """Wide layers: several buckets, of which some are exchanged while the backward pass still computes."""

    def __init__(self) -> None:
        super().__init__()
        middle = [layer for _ in range(3) for layer in (nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.1))]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 1024), *middle, nn.Linear(1024, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


CATALOGUE = {
    "linear_regression": ModelSpec(linear_regression={}),
    "softmax_regression": ModelSpec(softmax_regression={}),
    "mlp": ModelSpec(mlp={"hidden_units": [256], "activation": "relu", "dropout": [0.5]}),
    "lenet, sigmoid, avg": ModelSpec(lenet={"activation": "sigmoid", "pooling": "avg"}),
    "lenet, relu, max": ModelSpec(lenet={"activation": "relu", "pooling": "max"}),
}
OWN: dict[str, type[Classifier]] = {
    "convolutions": Convolutions,
    "recurrent": Recurrent,
    "attention": Attention,
    "deep, in buckets": Deep,
}


@dataclass(frozen=True)
class Work:
    """One training run.

    Attributes:
        model: of CATALOGUE or OWN, by name.
        folder: of the made-up images.
        device: where it computes.
        shards: parts of a minibatch.
        steps: how many.
        batch_size: examples of a minibatch.
        checkpoints: folder of its checkpoints; empty for none.
        checkpoint_every: steps between two.
        precision: in what the model computes.
        memory_format: how images lie in memory.
    """

    model: str
    folder: str
    device: str
    shards: int = 4
    steps: int = 20
    batch_size: int = 256
    checkpoints: str = ""
    checkpoint_every: int = 10**9
    precision: str = "fp32"
    memory_format: str = "contiguous"

    def but(self, **changes: Any) -> "Work":
        return replace(self, **changes)


class Recorder(Listener):
    """Keeps the points that depend on the spec alone."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


def data_of(work: Work) -> DataModule:
    """Its data, read once in each process."""
    return _loaded(work.model == "linear_regression", work.folder)


@functools.cache
def _loaded(is_regression: bool, folder: str) -> DataModule:
    data: DataModule = (
        SyntheticRegression((2.0, -3.4, 0.5, 7.0), 4.2, 0.01, train_size=2000, validation_size=500, seed=0)
        if is_regression
        else IdxDataset(folder)
    )
    data.load()
    return data


def module_of(work: Work, data: DataModule) -> Module:
    """Its model, with the same weights in every process."""
    if work.model in CATALOGUE:
        return build_model(CATALOGUE[work.model], data, SEED)
    torch.default_generator.manual_seed(initialisation_seed(SEED))
    return OWN[work.model]()


def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of all runs: it has a state, which must not be lost."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=False)


def fit(
    work: Work,
    group: Group | None = None,
    listener: Listener | None = None,
    *,
    regroup: Regroup | None = None,
    origin: Origin | None = None,
    ledger: Ledger | None = None,
    optimizer: OptimizerFactory = momentum,
    log_every: int = 5,
) -> Result:
    """Train; see `Trainer.fit`."""
    data = data_of(work)
    trainer = Trainer(
        max_steps=work.steps,
        batch_size=work.batch_size,
        shards=work.shards,
        seed=SEED,
        log_every_steps=log_every,
        evaluate_every_steps=10**9,
        precision=work.precision,
        memory_format=work.memory_format,
    )
    return trainer.fit(
        module_of(work, data),
        data,
        optimizer,
        group=group,
        regroup=regroup,
        device=work.device,
        listener=listener,
        origin=origin,
        ledger=ledger,
    )


def write_images(folder: Path, train_size: int, validation_size: int, side: int = 28) -> None:
    """Write made-up images in the format of MNIST: noise, brighter in a stripe that tells the class."""
    random = torch.Generator().manual_seed(11)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, size in (("train", train_size), ("t10k", validation_size)):
        labels = torch.randint(0, 10, (size,), generator=random, dtype=torch.uint8)
        pixels = torch.randint(0, 128, (size, side, side), generator=random, dtype=torch.uint8)
        rows = torch.arange(side) * 10 // side
        pixels[rows[None, :] == labels[:, None]] += 100
        header = struct.pack(">4I", 0x803, size, side, side)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        labels_header = struct.pack(">2I", 0x801, size)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels_header + labels.numpy().tobytes())


def examples_of(work: Work, count: int) -> Examples:
    """The first examples of its data, as the model sees them, in host memory."""
    data = data_of(work)
    return Examples(*data.take(data.train, slice(0, count)))
