"""How soon training begins, and how many small jobs get done; beside torchrun and Ray Train.

    python benchmarks/start.py [--jobs 100] [--rounds 5] [--data ../shared/data/mnist]

First step: mlp 256 on MNIST on 2 workers, a point after each step. Lockstep: from the call of `submit_job` to the first
metric point in the client's hands, on warm workers, and on a server that keeps none. torchrun: from the start of its
process to the end of the first step, DistributedDataParallel over gloo. Ray Train: from `TorchTrainer.fit` to the end
of the first step, in a driver that has imported everything and is connected to a Ray that is up. All take turns.

Small jobs: softmax regression on the digits, one epoch, one after the other; beside a new process of plain PyTorch for
each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import show
from lockstep.client import Client
from serving import server

WORKERS = 2
BATCH = 256
CPUS = 4
COLD = ("--warm-ttl-s", "0", "--warm-workers", "0")


def first_step_spec(data: Path) -> dict[str, Any]:
    return {
        "name": "start",
        "model": {"mlp": {"hidden_units": [256]}},
        "data": {"idx": {"root": str(data.resolve())}},
        "optimizer": {"sgd": {"learning_rate": 0.1}},
        "training": {"max_steps": 20, "batch_size": BATCH, "log_every_steps": 1},
        "resources": {"workers": WORKERS},
    }


SMALL = {
    "name": "small",
    "model": {"softmax_regression": {}},
    "data": {"builtin": {"name": "digits"}},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
    "training": {"max_epochs": 1, "batch_size": 128},
}


def lockstep_start(client: Client, data: Path) -> tuple[float, dict[str, float]]:
    """Seconds to the first point, and the legs of the way there."""
    began = time.perf_counter()
    job = client.submit_job(first_step_spec(data))
    next(iter(job.metrics(follow=True)))
    took = time.perf_counter() - began
    job.wait()
    return took, dict(job.timeline.legs())


def train_a_step(data: Path, done: Path) -> None:
    """On each rank of a peer: read the data, take one step, and on rank 0 write down when it was done."""
    import torch
    import torch.distributed as dist
    from torch import nn

    from lockstep.workers.datasets.images.idx import IdxDataset

    torch.set_num_threads(1)
    data_set = IdxDataset(str(data))
    data_set.load()
    alone = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    module = nn.parallel.DistributedDataParallel(alone)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs = data_set.transform(data_set.train.inputs[: BATCH // WORKERS])
    loss = nn.functional.cross_entropy(module(inputs), data_set.train.targets[: BATCH // WORKERS])
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if dist.get_rank() == 0:
        done.write_text(f"{time.time()} {loss.item()}")


def torchrun_rank(data: Path, done: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    train_a_step(data, done)
    dist.destroy_process_group()


def torchrun(data: Path) -> float:
    program = Path(sys.executable).with_name("torchrun")
    with tempfile.NamedTemporaryFile() as done:
        began = time.time()
        command: list[str | Path] = [
            program,
            "--standalone",
            "--nproc-per-node",
            str(WORKERS),
            __file__,
            "--data",
            data,
        ]
        subprocess.run([*command, "--torchrun", done.name], check=True, capture_output=True)
        return float(Path(done.name).read_text().split()[0]) - began


def ray_train_driver(data: Path, done: Path) -> None:
    """Begin a training for every line of the input; print how long its first step took to come."""
    import ray
    import ray.train
    import ray.train.torch

    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False)

    def loop(config: dict[str, str]) -> None:
        train_a_step(Path(config["data"]), Path(config["done"]))

    for _ in sys.stdin:
        done.unlink(missing_ok=True)
        began = time.time()
        ray.train.torch.TorchTrainer(
            loop,
            train_loop_config={"data": str(data.resolve()), "done": str(done)},
            scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
            run_config=ray.train.RunConfig(storage_path=str(done.parent)),
        ).fit()
        print("took", float(done.read_text().split()[0]) - began, flush=True)


class RayTrain:
    """The peer's driver, in a process of its own."""

    def __init__(self, data: Path, folder: Path) -> None:
        command: list[str | Path] = [sys.executable, __file__, "--data", data, "--ray-train", folder / "ray"]
        environment = os.environ | {"RAY_TRAIN_V2_ENABLED": "1"}
        with (folder / "ray.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def start(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("took "):
                return float(line.split()[1])
        raise RuntimeError("Ray Train's driver has ended")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def plain_small() -> None:
    """The small job in plain PyTorch."""
    import torch
    from sklearn import datasets
    from torch import nn

    digits = datasets.load_digits()
    inputs = torch.from_numpy(digits.data[:1437] / 16).float()
    targets = torch.from_numpy(digits.target[:1437])
    module = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for chosen in torch.randperm(len(inputs)).split(128):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def first_steps(options: argparse.Namespace, warm: Client, cold: Client, ray_train: RayTrain | None) -> None:
    times: dict[str, list[float]] = {"warm": [], "cold": [], "torchrun": [], "ray train": []}
    legs: dict[str, list[float]] = {}
    lockstep_start(warm, options.data)
    for _ in range(options.rounds):
        for _ in range(options.jobs // options.rounds):
            took, way = lockstep_start(warm, options.data)
            times["warm"].append(took)
            for leg, seconds in way.items():
                legs.setdefault(leg, []).append(seconds)
        times["cold"].append(lockstep_start(cold, options.data)[0])
        times["torchrun"].append(torchrun(options.data))
        if ray_train is not None:
            times["ray train"].append(ray_train.start())
        print("  " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in times.items() if values), flush=True)
    medians = {name: show(name, "starts", values) for name, values in times.items() if values}
    for name, median in medians.items():
        if name != "warm":
            print(f"{name} takes {median / medians['warm']:.0f}x as long as warm")
    ways = [f"{leg} {1e3 * statistics.median(values):.1f} ms" for leg, values in legs.items()]
    print(f"legs of a warm start (medians): {', '.join(ways)}")


def small_jobs(jobs: int) -> None:
    with server(CPUS) as running, Client(running.target) as client:
        client.submit_job(SMALL).wait()
        began = time.perf_counter()
        for _ in range(jobs):
            client.submit_job(SMALL).wait()
        ours = jobs / (time.perf_counter() - began)
        processes = max(1, jobs // 20)
        began = time.perf_counter()
        for _ in range(processes):
            subprocess.run([sys.executable, __file__, "--plain-small"], check=True)
        theirs = processes / (time.perf_counter() - began)
    print(f"small jobs: {ours:.1f}/s; a new process of plain PyTorch for each: {theirs:.2f}/s; {ours / theirs:.0f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-ray", action="store_true", help="leave Ray Train out")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    for peer in ("--torchrun", "--ray-train"):
        parser.add_argument(peer, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain-small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torchrun is not None:
        torchrun_rank(options.data, options.torchrun)
    elif options.ray_train is not None:
        ray_train_driver(options.data, options.ray_train)
    elif options.plain_small:
        plain_small()
    else:
        with (
            tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder,
            server(CPUS) as warm_server,
            server(CPUS, *COLD) as cold_server,
            Client(warm_server.target) as warm,
            Client(cold_server.target) as cold,
        ):
            ray_train = None if options.without_ray else RayTrain(options.data, Path(folder))
            try:
                first_steps(options, warm, cold, ray_train)
            finally:
                if ray_train is not None:
                    ray_train.stop()
        small_jobs(options.jobs)


if __name__ == "__main__":
    main()
