"""How much of each check is done, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lockstep.workers.engine.exchange.group import Via
from tests.machines.gpu_check.work import CATALOGUE, OWN, Work, write_images
from tests.support.process_fleet import Fleet


@dataclass(frozen=True)
class Plan:
    """What all checks are told.

    Attributes:
        device: where they compute, "cuda:0" or "cpu".
        folder: for what they write.
        models: which ones are trained.
        shards: into how many parts.
        world_sizes: with how many ranks that share the device.
        steps: of a short run.
        batch_size: of its minibatches.
        rounds: of a comparison of speed.
        timed_steps: of one contender in a round.
        service_steps: of the job whose worker is killed.
        images: for training.
    """

    device: str
    folder: Path
    models: tuple[str, ...] = (*CATALOGUE, *OWN)
    shards: tuple[int, ...] = (4, 8, 2, 1)
    world_sizes: tuple[int, ...] = (2, 3, 4)
    steps: int = 20
    batch_size: int = 256
    rounds: int = 3
    timed_steps: int = 60
    service_steps: int = 800
    images: int = 20_000

    @property
    def is_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def via(self) -> Via:
        """How ranks exchange: those that share a GPU find out by themselves, on CPUs they are told to do as if."""
        return "auto" if self.is_gpu else "host"

    @contextmanager
    def fleet(self) -> Iterator[Fleet]:
        """Processes that train together on the device."""
        fleet = Fleet(self.device, self.via)
        try:
            yield fleet
        finally:
            fleet.close()

    def work(self, model: str, **options: int | str) -> Work:
        """A run of a model; writes the images when they are not there."""
        images = self.folder / "images"
        if not images.exists():
            write_images(images, self.images, self.images // 10)
        return Work(model, str(images), self.device, steps=self.steps, batch_size=self.batch_size).but(**options)


def on_a_gpu(folder: Path) -> Plan:
    """The whole, in about seven minutes of an H200."""
    return Plan("cuda:0", folder)


def on_cpus(folder: Path) -> Plan:
    """The same with less of everything, to see that the checks themselves are right."""
    return Plan(
        "cpu",
        folder,
        shards=(4, 2, 1),
        world_sizes=(2, 3),
        steps=8,
        rounds=3,
        timed_steps=20,
        service_steps=4000,
        images=4_000,
    )


def smallest(folder: Path) -> Plan:
    """As little as runs through every line."""
    return Plan(
        "cpu",
        folder,
        models=("softmax_regression", "convolutions"),
        shards=(2,),
        world_sizes=(2,),
        steps=4,
        batch_size=16,
        rounds=1,
        timed_steps=4,
        images=300,
    )
