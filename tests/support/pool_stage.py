"""A pool of processes on a played fleet, at a time that the test sets."""

import math
from collections.abc import Callable
from typing import Any

from lockstep.v1.internal_service_pb2 import StartGang, WorkerProcess
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers.launcher.fleet import Process
from lockstep.workers.launcher.pool import Pool
from tests.support.played_fleet import PlayedActor, PlayedFleet

TTL_S = 600.0


class Clock:
    """The time, in place of the modules `time` and `awake`; it passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def time(self) -> float:
        return self.now_s

    now = time


class PoolStage:
    """A pool on a fleet of one or more nodes."""

    def __init__(self, clock: Clock, ttl_s: float = TTL_S, spares: int = 0, **usable: Any) -> None:
        self.clock = clock
        self.fleet = PlayedFleet(usable or {"a": (4.0, 0.0)})
        self.told = 0
        self.pool = Pool(self.fleet, LauncherOptions(warm_ttl_s=ttl_s, warm_workers=spares), self._count)
        self._numbers = 0

    def _count(self) -> None:
        self.told += 1

    def take(self, node: str = "a", owner: str = "ann", cpus: float = 1.0, gpus: float = 0.0, **how: bool) -> Process:
        """Take a process for a worker of a job of its own."""
        self.pool.hear(0)
        self.passes(0.001)
        order = StartGang(job_id=f"job-{self._numbers}", attempt=1, owner=owner)
        self._numbers += 1
        resources = order.spec.resources
        resources.cpus_per_worker, resources.gpus_per_worker, resources.gpu_share = cpus, math.ceil(gpus), gpus
        return self.pool.take(order, node, 0, **how)

    def idle(self, *args: Any, **options: Any) -> Process:
        """A process that has worked and waits."""
        process = self.take(*args, **options)
        self.pool.give_back(process, 50)
        return process

    def idle_ones(self, count: int, **options: Any) -> list[Process]:
        """Different ones, the one that has waited for longest first."""
        processes = [self.take(**options) for _ in range(count)]
        for process in processes:
            self.passes(0.001)
            self.pool.give_back(process, 50)
        return processes

    def passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def look(self, after_s: float = 0.0) -> None:
        """Look after the idle ones."""
        self.pool.hear(0)
        self.passes(after_s)
        self.pool.look_after()

    def spare(self) -> PlayedActor:
        """The newest actor, which was made without an order."""
        actor = self.fleet.actors[-1]
        assert actor.asked[0].method == "warm_up"
        return actor

    def messages(self) -> list[WorkerProcess]:
        self.pool.hear(0)
        return self.pool.processes()


Make = Callable[..., PoolStage]
