"""What is planned for shares of GPUs is what Ray can give, whatever idle workers hold: plan, pool and a played Ray."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from lockstep.contract.spec.resources import UNITS
from lockstep.server.coordinator.gangs import Gang, claims_of
from lockstep.server.scheduling.scheduler import Amount, Node, Request, amount, plan
from lockstep.v1.internal_service_pb2 import WorkerProcess
from lockstep.workers.launcher import pool
from lockstep.workers.launcher.fleet import Process
from tests.support.pool_stage import Clock, PoolStage

CPUS = 0.1
SHARES = (1.0, 0.7, 0.5, 0.5, 0.3, 0.25, 1 / 3)


class PlayedRay:
    """One node whose GPUs are given as Ray does it: the part of one of the fullest on which there is room."""

    def __init__(self, gpus: int) -> None:
        self.free = [UNITS] * gpus
        self.given: dict[str, tuple[int, int]] = {}

    def give(self, process: Process) -> bool:
        """Whether there was room."""
        part = amount(CPUS, process.shape.gpus).gpu
        room = [(free, index) for index, free in enumerate(self.free) if free >= part]
        if room:
            index = min(room)[1]
            self.free[index] -= part
            self.given[process.name] = index, part
        return bool(room)

    def take_back(self, name: str) -> None:
        index, part = self.given.pop(name)
        self.free[index] += part


class Cluster:
    """A node with jobs that come and go; each worker may stay idle when its job ends."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        gpus = chance.randint(1, 3)
        self.stage, self.ray = PoolStage(Clock(), a=(99.0, float(gpus))), PlayedRay(gpus)
        self.node = Node("a", Amount(99 * UNITS, gpus * UNITS), Amount(99 * UNITS, gpus * UNITS))
        self.jobs: dict[tuple[str, int], list[Process]] = {}
        self.gangs: dict[tuple[str, int], Gang] = {}
        self.all: set[Process] = set()

    def some_jobs_end(self) -> None:
        for key in [key for key in self.jobs if self.chance.random() < 0.35]:
            del self.gangs[key]
            for process in self.jobs.pop(key):
                if self.chance.random() < 0.8:
                    self.stage.pool.give_back(process, 1)
                else:
                    self.stage.pool.end(process)

    def requests(self, number: int) -> Iterator[tuple[Request, float]]:
        for index in range(self.chance.randint(1, 3)):
            share, workers = self.chance.choice(SHARES), self.chance.randint(1, 2)
            yield Request(f"job-{number}-{index}", workers, workers, amount(CPUS, pool_share(share))), pool_share(share)

    def look(self, number: int) -> bool:
        """Plan, and start what was planned; whether Ray had a GPU for all of it."""
        self.some_jobs_end()
        queue = list(self.requests(number))
        told = [
            WorkerProcess(node_id="a", job_id=job_id, attempt=1, gpu_ids=process.gpu_ids, gpus=process.shape.gpus)
            for (job_id, _), processes in self.jobs.items()
            for process in processes
        ]
        held, shares = claims_of(self.gangs, told)
        decided = plan([request for request, _ in queue], [], [self.node], held, shares=shares)
        for placement, (request, share) in zip(decided.placements, queue, strict=False):
            key = placement.job_id, 1
            self.gangs[key] = Gang(1, placement.node_ids, request.each)
            self.jobs[key] = []
            owner = self.chance.choice(("ann", "bob"))
            for _ in placement.node_ids:
                process = self.stage.take(gpus=share, cpus=CPUS, owner=owner)
                for ended in [p for p in self.all if p.is_ended and p.name in self.ray.given]:
                    self.ray.take_back(ended.name)
                self.all.add(process)
                if process.name not in self.ray.given and not self.ray.give(process):
                    return False
                self.stage.pool.is_up(process, 1, (str(self.ray.given[process.name][0]),))
                self.jobs[key].append(process)
        return True


def pool_share(share: float) -> float:
    """As Ray counts it."""
    return int(share * UNITS) / UNITS


def test_whoever_is_planned_gets_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.log, "info", lambda *args, **facts: None)
    chance = random.Random(5)
    for _ in range(60):
        cluster = Cluster(chance)
        assert all(cluster.look(number) for number in range(12))
