"""A GPT whose masks are buffers on two workers, and a deep network of many batch normalisations, against torch DDP.

    python benchmarks/masks.py [--rounds 3] [--steps 12]

Starts itself under torchrun, two processes with one thread each. Contenders run in turns in the same processes; medians
of the samples per second, and of the ratio to DDP within a round. DDP is at its best: static graph, gradients as bucket
views, buffers that are not broadcast.

- gpt: six layers, each with a mask of 1024 by 1024 floats as a buffer, as many implementations have it: 24 MiB that
  never change.
- norms: 53 convolutions with batch normalisation, as many as ResNet-50 has: 159 buffers that change in every step.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from lockstep.workers.engine import Classifier, DataModule, Examples, Group, Module, Trainer
from throughput import WORLD_SIZE, Stopwatch, ratio

BATCH_SIZE = 32
VOCABULARY, LENGTH, LONGEST, WIDTH, HEADS, LAYERS = 65, 64, 1024, 128, 4, 6
NORMS = 53


class Attention(nn.Module):
    """Causal self-attention with a mask of floats, (LONGEST, LONGEST), that is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mask: Tensor
        self.register_buffer("mask", torch.full((LONGEST, LONGEST), -math.inf).triu(1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, length, width) to the same shape."""
        examples, length, _ = inputs.shape
        query, key, value = self.project(inputs).view(examples, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(WIDTH / HEADS) + self.mask[:length, :length]
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(inputs.shape))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a small MLP, each behind a normalisation and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, length, width) to the same shape."""
        hidden = inputs + self.attention(inputs)
        return hidden + self.mlp(hidden)  # type: ignore[no-any-return]


class Gpt(Module):
    """A language model: tokens, int64, (n, length), to scores (n, length, VOCABULARY)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.scores = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map tokens to the scores of those that follow."""
        hidden = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        return self.scores(self.blocks(hidden))  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each token, (n, length)."""
        return functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")


class Norms(Classifier):
    """Convolutions with batch normalisation, one after another."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            layer for _ in range(NORMS) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        ]
        self.body = nn.Sequential(nn.Conv2d(3, 16, 1), *layers, nn.Flatten(), nn.Linear(16 * 64, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (n, 3, 8, 8) to scores (n, 10)."""
        return self.body(inputs)  # type: ignore[no-any-return]


class Noise(DataModule):
    """Inputs and targets that are drawn once."""

    def __init__(self, model: type[Module]) -> None:
        random = torch.Generator().manual_seed(1)
        if model is Gpt:
            tokens = torch.randint(0, VOCABULARY, (1024, LENGTH + 1), generator=random)
            self.train = Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        else:
            self.train = Examples(
                torch.randn(1024, 3, 8, 8, generator=random), torch.randint(0, 10, (1024,), generator=random)
            )
        self.validation = Examples(self.train.inputs[:2], self.train.targets[:2])


def lockstep(model: type[Module], data: DataModule, group: Group, steps: int, shards: int) -> float:
    """Samples per second of the engine between two log points, of which the second is included."""
    watch = Stopwatch()
    trainer = Trainer(
        max_steps=2 * steps + 1,  # validation follows the last step, which is not timed
        batch_size=BATCH_SIZE,
        shards=shards,
        log_every_steps=steps,
        evaluate_every_steps=10**9,
    )
    torch.manual_seed(0)
    trainer.fit(model(), data, partial(torch.optim.SGD, lr=0.01, foreach=False), group=group, listener=watch)
    return steps * BATCH_SIZE / (watch.times[2 * steps] - watch.times[steps])


def ddp(model: type[Module], data: DataModule, rank: int, steps: int) -> float:
    """Samples per second of DDP after as many steps of warm-up as the engine gets."""
    torch.manual_seed(0)
    plain = model()
    module = DistributedDataParallel(plain, static_graph=True, gradient_as_bucket_view=True, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, fused=True)
    own = BATCH_SIZE // WORLD_SIZE
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    module.train()  # type: ignore[no-untyped-call]
    began = 0.0
    for step in range(2 * steps):
        if step == steps:
            began = time.perf_counter()
        first = step * BATCH_SIZE % len(order) + rank * own
        inputs, targets = data.take(data.train, order[first : first + own])
        plain.loss(module(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return steps * BATCH_SIZE / (time.perf_counter() - began)


def contend(rounds: int, steps: int) -> None:
    """Run all contenders in turns and print the table on rank 0."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group.from_environment()
    for name, model in {"gpt": Gpt, "norms": Norms}.items():
        data = Noise(model)
        contenders: dict[str, Callable[[], float]] = {
            f"lockstep, {shards} shards": partial(lockstep, model, data, group, steps, shards) for shards in (2, 4, 8)
        }
        contenders["ddp"] = partial(ddp, model, data, rank, steps)
        figures: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(rounds):
            for contender, run in contenders.items():
                dist.barrier()
                figures[contender].append(run())
        if rank == 0:
            print(f"\n{name}, batch {BATCH_SIZE}, {WORLD_SIZE} workers")
            for contender, values in figures.items():
                median, to_ddp = statistics.median(values), ratio(values, figures["ddp"])
                print(f"  {contender:20} {median:8,.1f} samples/s  {to_ddp:5.2f}x ddp", flush=True)
    group.leave()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    if "RANK" in os.environ:
        contend(options.rounds, options.steps)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE)]
    subprocess.run([*torchrun, *sys.argv], check=True)


if __name__ == "__main__":
    main()
