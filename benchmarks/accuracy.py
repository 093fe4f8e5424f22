"""An MLP on MNIST by a Lockstep job on two workers, beside plain single-process PyTorch doing the same.

    python benchmarks/accuracy.py [--data ../shared/data/mnist]

256 hidden units, SGD 0.1, batch 256, 10 epochs, standardised pixels; validation after each. Prints validation accuracy
and wall time of both, and exits 1 when Lockstep's accuracy is below 0.97. PyTorch gets both cores and images in memory.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

from lockstep.client import Client
from lockstep.workers.datasets.images.idx import IdxDataset
from serving import server

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 256, 0.1
LEAST_ACCURACY = 0.97


def plain_pytorch(root: Path) -> tuple[float, float]:
    """Validation accuracy and seconds, reading included, of a loop as anyone would write it."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    began = time.perf_counter()
    data = IdxDataset(str(root), standardize=True)
    data.load()
    (images, labels), (val_images, val_labels) = (
        (data.transform(part.inputs), part.targets) for part in (data.train, data.validation)
    )
    module = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    accuracy = 0.0
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            accuracy = float((module(val_images).argmax(1) == val_labels).float().mean())
    return accuracy, time.perf_counter() - began


def lockstep_job(client: Client, root: Path) -> tuple[float, float, float]:
    """Validation accuracy, seconds from submit to success, and seconds of training alone."""
    spec = {
        "model": {"mlp": {"hidden_units": [256]}},
        "data": {"idx": {"root": str(root.resolve()), "standardize": True}},
        "optimizer": {"sgd": {"learning_rate": LEARNING_RATE}},
        "training": {"max_epochs": EPOCHS, "batch_size": BATCH_SIZE},
        "resources": {"workers": 2, "shards": 2},
    }
    began = time.perf_counter()
    job = client.submit_job(spec).wait()
    seconds = time.perf_counter() - began
    assert job.result is not None
    assert job.start_time is not None
    assert job.end_time is not None
    return job.result.final_metrics["val_accuracy"], seconds, (job.end_time - job.start_time).total_seconds()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    root = parser.parse_args().data
    with server(num_cpus=2) as running, Client(running.target) as client:
        for _ in range(2):
            accuracy, seconds, training_s = lockstep_job(client, root)
            peer_accuracy, peer_seconds = plain_pytorch(root)
            print(f"mlp 256 on MNIST, {EPOCHS} epochs")
            print(
                f"  lockstep, 2 workers  accuracy {accuracy:.4f}  {seconds:5.1f} s from submit, {training_s:5.1f} s of "
                f"training  {seconds / peer_seconds:.2f}x the time of pytorch"
            )
            print(f"  pytorch, 1 process   accuracy {peer_accuracy:.4f}  {peer_seconds:5.1f} s", flush=True)
    return 0 if accuracy >= LEAST_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
