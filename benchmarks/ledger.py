"""What the ledger costs: steps with it, against steps of the same run without it.

    python benchmarks/ledger.py [--steps 6000] [--data ../shared/data/mnist]

Two workers on two cores, one thread each, as in throughput.py. In each pair of blocks of ten steps it is on in one,
drawn at random, on both ranks alike; the result is the median over the pairs of the ratio within a pair, which whatever
else the machine does touches least.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.engine import Group, Ledger, Trainer
from lockstep.workers.models import build_model
from throughput import BATCH_SIZE, LEARNING_RATE, MODELS, WORLD_SIZE

BLOCK = 10
WARM_UP = 100


def nothing(*arguments: Any) -> None:
    """In place of a method of the ledger."""


class SwitchedLedger(Ledger):
    """A ledger that is on for one block of steps of each pair and off for the other, the same on every rank.

    Attributes:
        pairs: for each pair the median duration of a step with it and without it, in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[float, float]] = []
        self._durations: dict[bool, list[float]] = {True: [], False: []}
        self._begun = 0
        self._began = 0.0
        self._is_on = True
        self._order = random.Random(0)
        self._real = {name: getattr(self, name) for name in ("enter", "end_step")}

    def begin_step(self) -> None:
        now = time.perf_counter()
        # The first step of a block also pays for the switch.
        if self._begun > WARM_UP and self._begun % BLOCK != 1:
            self._durations[self._is_on].append(now - self._began)
        if self._begun % BLOCK == 0:
            self._switch()
        self._begun += 1
        self._began = now
        if self._is_on:
            Ledger.begin_step(self)
        else:
            self.is_sampled = False

    def _switch(self) -> None:
        is_second = self._begun // BLOCK % 2 == 1
        if not is_second and all(self._durations.values()):
            self.pairs.append((statistics.median(self._durations[True]), statistics.median(self._durations[False])))
            self._durations = {True: [], False: []}
        self._is_on = not self._is_on if is_second else self._order.random() < 0.5
        for name, method in self._real.items():
            setattr(self, name, method if self._is_on else nothing)


def compare(steps: int, root: Path) -> None:
    """Train each model and print the figures on rank 0."""
    group = Group.from_environment()
    data = IdxDataset(str(root))
    data.load()
    for name, model in MODELS.items():
        ledger = SwitchedLedger()
        many = steps if name != "lenet" else steps // 4
        Trainer(max_steps=many, batch_size=BATCH_SIZE, log_every_steps=10**9, evaluate_every_steps=10**9).fit(
            build_model(model, data, 0),
            data,
            lambda parameters: torch.optim.SGD(parameters, lr=LEARNING_RATE, foreach=False),
            group=group,
            ledger=ledger,
        )
        if group.rank == 0:
            with_ledger, without = (statistics.median(pair[number] for pair in ledger.pairs) for number in (0, 1))
            ratio = statistics.median(off / on for on, off in ledger.pairs)
            print(
                f"{name:20} a step with the ledger {1e6 * with_ledger:8.1f} µs, without {1e6 * without:8.1f} µs: "
                f"{ratio:.4f}x the throughput (median of {len(ledger.pairs)} pairs of {BLOCK} steps)",
                flush=True,
            )
    group.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    options = parser.parse_args()
    if "RANK" in os.environ:
        compare(options.steps, options.data)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE)]
        subprocess.run([*torchrun, *sys.argv], check=True)


if __name__ == "__main__":
    main()
