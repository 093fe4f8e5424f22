"""An MLP of 25 million parameters on two workers: throughput, memory and the cost of checkpoints, against torch DDP.

    python benchmarks/large_model.py [--rounds 3] [--data ../shared/data/mnist]

Starts itself under torchrun, two processes with one thread each. Contenders run in turns in the same processes; medians
of the ratios within a round. The profile is the engine's own: where the time of a step goes. Memory is the greatest
resident size of processes that did nothing else.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import throughput
from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.datasets.images.idx import IdxDataset
from lockstep.workers.engine import Activity, Group, Origin
from lockstep.workers.engine.state.checkpoint import Checkpoints
from throughput import WORLD_SIZE, Stopwatch, ddp, in_memory, lockstep

MODEL = ModelSpec(mlp={"hidden_units": [4608, 4608], "activation": "relu"})
CHECKPOINT_EVERY = 50
STEPS = 50
throughput.LOG_EVERY = 10


class Profiler(Stopwatch):
    """Accounts for the time of each activity."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[Activity, float] = defaultdict(float)
        self._activity, self._since = Activity.JOIN, time.perf_counter()

    def entered(self, activity: Activity, step: int) -> None:
        now = time.perf_counter()
        self.seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now


def peak_mib() -> float:
    """The greatest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(options: argparse.Namespace) -> None:
    """The work of one rank."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group.from_environment()
    data = IdxDataset(str(options.data))
    data.load()
    images, labels = data.transform(data.train.inputs), data.train.targets
    profiler = Profiler()
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:

        def with_checkpoints() -> float:
            origin = Origin(Checkpoints(folder), CHECKPOINT_EVERY)
            try:
                return lockstep(MODEL, data, group, STEPS, 2, origin)
            finally:  # the next run shall not go on from them
                for path in Path(folder).rglob("*.json"):
                    path.unlink()
                dist.barrier()

        contenders: dict[str, Callable[[], float]] = {
            "lockstep": lambda: lockstep(MODEL, data, group, STEPS, 2, watch=profiler),
            "lockstep, a checkpoint every 50 steps": with_checkpoints,
            "ddp": lambda: ddp(MODEL, data, in_memory(images, labels, rank), STEPS),
        }
        if options.only:
            contenders = {options.only: contenders[options.only]}
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        before = peak_mib()
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                dist.barrier()
                figures[name].append(contender())
    if rank == 0 and options.only:
        print(f"  {options.only:40} {peak_mib() - before:7.0f} MiB above data and torch", flush=True)
    elif rank == 0:
        show(figures, profiler)
    group.leave()
    dist.destroy_process_group()


def show(figures: dict[str, list[float]], profiler: Profiler) -> None:
    """Print throughput and profile."""
    for name, values in figures.items():
        to_ddp = statistics.median(value / peer for value, peer in zip(values, figures["ddp"], strict=True))
        to_plain = statistics.median(value / peer for value, peer in zip(values, figures["lockstep"], strict=True))
        median = statistics.median(values)
        print(f"  {name:40} {median:7,.0f} samples/s  {to_ddp:5.3f}x ddp  {to_plain:5.3f}x lockstep")
    total = sum(profiler.seconds[activity] for activity in (Activity.COMPUTE, Activity.EXCHANGE, Activity.UPDATE))
    for activity in (Activity.COMPUTE, Activity.EXCHANGE, Activity.UPDATE):
        print(f"  profile of a step: {activity.value:10} {profiler.seconds[activity] / total:6.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run(options)
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORLD_SIZE), __file__]
    shared = ["--data", str(options.data)]
    print("mlp of 25 million parameters, batch 256, 2 workers", flush=True)
    subprocess.run([*torchrun, *shared, "--rounds", str(options.rounds)], check=True)
    for name in ("lockstep", "ddp"):
        subprocess.run([*torchrun, *shared, "--rounds", "1", "--only", name], check=True)


if __name__ == "__main__":
    main()
