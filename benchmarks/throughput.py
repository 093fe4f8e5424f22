"""Training throughput on MNIST, two workers on two cores, against torch DDP and against a per-sample DataLoader.

    python benchmarks/throughput.py [--rounds 7] [--steps 100] [--data ../shared/data/mnist]

Starts itself under torchrun. All contenders run in the same processes, one thread each, in turns; the figure of each
is the median over the rounds, in samples per second, with the median of its ratio to the peers of the same round.

- lockstep: the engine as jobs use it, its log points included; with `shards: 2`, and with the default of 4.
- ddp: DistributedDataParallel at its best: static graph, gradients as bucket views, fused optimizer, float images in
  memory, one shuffled index per epoch, no metrics but the running loss.
- lightning (from the extra `[bench]`, left out where that is missing): PyTorch Lightning's Trainer with that very DDP
  and those minibatches; no logger, no progress bar, no checkpoints.
- dataloader: the trainer of Dive into Deep Learning: one process, fed one example at a time by a DataLoader with four
  processes, as the book has it, each image made with Pillow and converted as torchvision does; and the same without
  processes for reading.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.engine import Group, Listener, Origin, Point, Progress, Trainer
from lockstep.workers.models import build_model

WORLD_SIZE = 2
BATCH_SIZE = 256
LEARNING_RATE = 0.1
LOG_EVERY = 50
WARM_UP_BOOK = 10
PEERS = ("ddp", "lightning", "dataloader", "dataloader, in process")
MODELS = {
    "softmax_regression": ModelSpec(softmax_regression={}),
    "mlp 256": ModelSpec(mlp={"hidden_units": [256], "activation": "relu"}),
    "lenet": ModelSpec(lenet={"activation": "sigmoid", "pooling": "avg"}),
}


class Stopwatch(Listener):
    """Notes when each log point is reached."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.times[progress.step] = time.perf_counter()


def lockstep(
    model: ModelSpec,
    data: IdxDataset,
    group: Group,
    steps: int,
    shards: int,
    origin: Origin | None = None,
    watch: Stopwatch | None = None,
) -> float:
    """Samples per second of the engine between its first and its last regular log point."""
    watch = watch or Stopwatch()
    steps = LOG_EVERY + steps // LOG_EVERY * LOG_EVERY
    trainer = Trainer(
        max_steps=steps + 1,  # validation follows the last step, which is not timed
        batch_size=BATCH_SIZE,
        shards=shards,
        log_every_steps=LOG_EVERY,
        evaluate_every_steps=10**9,
    )
    trainer.fit(
        build_model(model, data, 0),
        data,
        lambda parameters: torch.optim.SGD(parameters, lr=LEARNING_RATE, foreach=False),
        group=group,
        listener=watch,
        origin=origin,
    )
    return (steps - LOG_EVERY) * BATCH_SIZE / (watch.times[steps] - watch.times[LOG_EVERY])


def ddp(model: ModelSpec, data: IdxDataset, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> float:
    """Samples per second of DDP after as many steps of warm-up as the engine gets."""
    module = DistributedDataParallel(build_model(model, data, 0), static_graph=True, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, fused=True)
    running = torch.zeros(())
    module.train()  # type: ignore[no-untyped-call]
    began = 0.0
    for step in range(LOG_EVERY + steps):
        if step == LOG_EVERY:
            began = time.perf_counter()
        inputs, targets = next(batches)
        loss = nn.functional.cross_entropy(module(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        running += loss.detach()
    return steps * BATCH_SIZE / (time.perf_counter() - began)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Minibatches that are ready, for a DataLoader to pass on."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches


def lightning(model: ModelSpec, data: IdxDataset, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> float:
    """Samples per second of PyTorch Lightning's Trainer after as many steps of warm-up as the engine gets."""
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")

    class Lit(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = build_model(model, data, 0)
            self.times: list[float] = []

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            inputs, targets = batch
            return nn.functional.cross_entropy(self.net(inputs), targets)

        def on_train_batch_end(self, *_: object) -> None:
            self.times.append(time.perf_counter())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, fused=True)

    module = Lit()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy=DDPStrategy(static_graph=True, gradient_as_bucket_view=True),
        max_steps=LOG_EVERY + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Endless(batches), batch_size=None))
    return steps * BATCH_SIZE / (module.times[-1] - module.times[LOG_EVERY - 1])


def in_memory(images: Tensor, labels: Tensor, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One rank's half of shuffled minibatches, gathered from tensors."""
    own = BATCH_SIZE // WORLD_SIZE
    for epoch in range(10**9):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for start in range(rank * own, len(images) - BATCH_SIZE + rank * own + 1, BATCH_SIZE):
            chosen = order[start : start + own]
            yield images.index_select(0, chosen), labels.index_select(0, chosen)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images that are made, resized and converted when they are asked for, as torchvision's FashionMNIST does."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index, 0].numpy()).resize((28, 28))
        pixels = torch.from_numpy(np.array(image, copy=True)).view(28, 28, 1).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255), int(self.labels[index])


def book(model: ModelSpec, data: IdxDataset, rank: int, steps: int, readers: int) -> float:
    """Samples per second of the book's trainer: one process, a DataLoader with `readers` processes that read."""
    if rank != 0:
        return 0.0
    module = build_model(model, data, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    dataset = OneByOne(data.train.inputs, data.train.targets)
    batches = iter(DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=readers, drop_last=True))
    began = 0.0
    for step in range(WARM_UP_BOOK + steps):
        if step == WARM_UP_BOOK:
            began = time.perf_counter()
        inputs, targets = next(batches)
        loss = nn.functional.cross_entropy(module(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return steps * BATCH_SIZE / (time.perf_counter() - began)


def ratio(values: list[float], peers: list[float]) -> float:
    """Median over the rounds of the ratio within a round, which the machine's mood of the hour touches least."""
    return statistics.median(value / peer for value, peer in zip(values, peers, strict=True))


def contenders_of(
    model: ModelSpec, data: IdxDataset, group: Group, steps: int, rank: int
) -> dict[str, Callable[[], float]]:
    """All that train one model, by name; each call trains it anew and returns examples per second."""
    images, labels = data.transform(data.train.inputs), data.train.targets
    contenders: dict[str, Callable[[], float]] = {
        "lockstep, 2 shards": lambda: lockstep(model, data, group, steps, 2),
        "lockstep, 4 shards": lambda: lockstep(model, data, group, steps, 4),
        "ddp": lambda: ddp(model, data, in_memory(images, labels, rank), steps),
        "lightning": lambda: lightning(model, data, in_memory(images, labels, rank), steps),
        "dataloader": lambda: book(model, data, rank, 40, readers=4),
        "dataloader, in process": lambda: book(model, data, rank, 40, readers=0),
    }
    if find_spec("pytorch_lightning") is None:
        del contenders["lightning"]
    return contenders


def contend(rounds: int, steps: int, root: Path) -> None:
    """Run all contenders in turns and print the table on rank 0."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group.from_environment()
    data = IdxDataset(str(root))
    data.load()
    for name, model in MODELS.items():
        contenders = contenders_of(model, data, group, steps, rank)
        figures: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(rounds):
            for contender, run in contenders.items():
                dist.barrier()
                figures[contender].append(run())
        if rank == 0:
            print(f"\n{name}, batch {BATCH_SIZE}, {WORLD_SIZE} workers")
            for contender, values in figures.items():
                spread = f"{min(values):,.0f} to {max(values):,.0f}"
                ratios = "  ".join(f"{ratio(values, figures[peer]):5.2f}x {peer}" for peer in PEERS if peer in figures)
                print(f"  {contender:22} {statistics.median(values):>9,.0f} samples/s ({spread})  {ratios}", flush=True)
    group.leave()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    options = parser.parse_args()
    if "RANK" in os.environ:
        contend(options.rounds, options.steps, options.data)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE)]
        subprocess.run([*torchrun, *sys.argv], check=True)


if __name__ == "__main__":
    main()
