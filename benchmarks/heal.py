"""How long training pauses when a worker is killed, and that no bit changes; beside Ray Train.

    python benchmarks/heal.py [--kills 100] [--peer-kills 5] [--data ../shared/data/mnist]

Lockstep: a real server and real Ray; mlp 256 on MNIST on 3 workers. Again and again one of them, drawn at random, gets
SIGKILL at a random moment; the job heals, grows back, and is struck again. The pause is what the job's own events say:
from the last step before the kill to the first one after it. Each job's digest must be that of an undisturbed job.

Ray Train (of the extra `[bench]`, left out where that is missing): the same model and data with TorchTrainer on 3
workers, a checkpoint every 200 steps, and restarts from it. The pause is from the kill to the first step beyond
those that were done before it.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import show
from lockstep.client import Client, Job
from serving import MARK, marked, server, workers_of

WORKERS = 3
STEPS = 6_000
PAUSE = re.compile(r"healed.* after a pause of (\d+) ms")


def spec(data: Path, workers: int) -> dict[str, Any]:
    return {
        "name": "heal",
        "model": {"mlp": {"hidden_units": [256]}},
        "data": {"idx": {"root": str(data.resolve())}},
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
        "training": {"max_steps": STEPS, "batch_size": 256, "log_every_steps": 20, "evaluate_every_steps": 10_000},
        "resources": {"workers": workers},
    }


def wait_until_whole(job: Job) -> bool:
    """Wait until all workers train; False when the job has ended."""
    for update in job.watch():
        if update.job.state.has_ended:
            return False
        if update.job.running_workers == WORKERS and update.job.progress.step > 0:
            return True
    return False


def disturb(client: Client, data: Path, kills: int) -> tuple[Job, int]:
    """Run one job, killing its workers until it has ended or `kills` were done."""
    job = client.submit_job(spec(data, WORKERS))
    done = 0
    while done < kills and wait_until_whole(job):
        time.sleep(random.random())
        workers = [worker.pid for worker in workers_of(client) if worker.job_id == job.job_id]
        if len(workers) == WORKERS and all(workers):
            os.kill(random.choice(workers), signal.SIGKILL)
            done += 1
            while job.refresh().running_workers == WORKERS and not job.state.has_ended:
                time.sleep(0.01)
    return job.wait(), done


def lockstep(data: Path, kills: int) -> list[float]:
    """Pauses in seconds."""
    pauses: list[float] = []
    wrong = doubled = done = jobs = 0
    with server(num_cpus=WORKERS) as running, Client(running.target) as client:
        undisturbed = client.submit_job(spec(data, 1)).wait()
        curve = undisturbed.metrics(kind="RESULT")
        while done < kills:
            job, more = disturb(client, data, kills - done)
            done, jobs = done + more, jobs + 1
            wrong += job.result != undisturbed.result or job.restarts > 0
            doubled += job.metrics(kind="RESULT") != curve
            pauses += [int(found.group(1)) / 1e3 for e in job.events() if (found := PAUSE.search(e.message))]
            print(f"  {done} kills, {len(pauses)} heals, {jobs} jobs, {wrong} wrong", flush=True)
    print(f"lockstep: {done} kills in {jobs} jobs, digests wrong {wrong}, curves wrong {doubled}")
    return pauses


def train_with_ray(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker."""
    import ray.train
    import torch
    from torch import nn

    from lockstep.workers.datasets.images.idx import IdxDataset

    torch.set_num_threads(1)
    data = IdxDataset(config["data"])
    data.load()
    images, labels = data.transform(data.train.inputs), data.train.targets
    context = ray.train.get_context()
    rank, own = context.get_world_rank(), 256 // WORKERS
    module: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    first = 1
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / "state.pt", weights_only=True)
        module.load_state_dict(saved["model"])
        first = saved["step"] + 1
    module = torch.nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(first, 10**9):
        chosen = torch.randint(0, len(images), (own,), generator=torch.Generator().manual_seed(step * WORKERS + rank))
        nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            with Path(config["log"]).open("a") as log:
                log.write(json.dumps([step, time.time()]) + "\n")
        if step % 200 == 0:
            with tempfile.TemporaryDirectory() as folder:
                torch.save({"model": module.module.state_dict(), "step": step}, Path(folder) / "state.pt")
                kept = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                ray.train.report({"step": step}, checkpoint=kept)


def ray_train(data: Path, log: Path) -> None:
    """Run the peer until it is killed."""
    import ray
    import ray.train
    import ray.train.torch

    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False)
    ray.train.torch.TorchTrainer(
        train_with_ray,
        train_loop_config={"data": str(data.resolve()), "log": str(log)},
        scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
        run_config=ray.train.RunConfig(
            storage_path=str(log.parent), failure_config=ray.train.FailureConfig(max_failures=-1)
        ),
    ).fit()


def peer(data: Path, kills: int) -> list[float]:
    """Pauses in seconds."""
    pauses = []
    mark = str(os.getpid())
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        log = Path(folder) / "steps"
        log.touch()
        command = [sys.executable, __file__, "--ray-train", str(log), "--data", str(data)]
        with (Path(folder) / "out").open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | {MARK: mark}, start_new_session=True
            )
        try:
            for _ in range(kills):
                before = len(log.read_text().splitlines())
                while len(log.read_text().splitlines()) < before + 500:
                    if process.poll() is not None:
                        raise RuntimeError((Path(folder) / "out").read_text()[-3000:])
                    time.sleep(0.1)
                killed = time.time()
                random.choice(marked(mark, "RayTrainWorker")).kill()
                time.sleep(0.5)
                lines = [json.loads(line) for line in log.read_text().splitlines()]
                furthest = max(step for step, _ in lines)
                after: list[float] = []
                while not after:
                    time.sleep(0.1)
                    lines = [json.loads(line) for line in log.read_text().splitlines()[len(lines) - 1 :]] or lines
                    after = [moment for step, moment in lines if step > furthest and moment > killed]
                pauses.append(after[0] - killed)
                print(f"  ray train: {pauses[-1]:.1f} s", flush=True)
        finally:
            process.terminate()
            process.wait()
            for left in marked(mark):
                left.kill()
    return pauses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--peer-kills", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    parser.add_argument("--ray-train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ray_train is not None:
        ray_train(options.data, options.ray_train)
        return
    ours = show("lockstep", "pauses", lockstep(options.data, options.kills))
    if not options.peer_kills:
        return
    try:
        theirs = show("ray train", "pauses", peer(options.data, options.peer_kills))
    except RuntimeError as error:
        print(f"ray train could not run: {error}")
    else:
        print(f"ray train pauses {theirs / ours:.0f}x as long")


if __name__ == "__main__":
    main()
