"""What the coordinator knows only in memory: gangs, and the resources they hold."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lockstep.contract.spec.resources import UNITS
from lockstep.server.jobs.job import Job
from lockstep.server.scheduling.scheduler import Amount, Request, Running, request_of
from lockstep.v1.internal_service_pb2 import WorkerProcess

FIRST_RESIZE_DELAY_S = 1.0
LONGEST_RESIZE_DELAY_S = 60.0


@dataclass
class Gang:
    """The workers of one attempt, from admission until a launcher says that they are gone.

    Attributes:
        node_ids: the node of each worker, as the launcher told last or as it was ordered since.
        revision: number of the newest order to resize it; 0 before the first.
        claimed: how many workers on each node count as its own. While an order is not answered these are the workers
            before it and those after it.
        misses: how often in a row the gang came to have other workers than it should.
        delay: while set, it is not resized.
        refused: nodes whose workers cannot train with those that are there; it does not grow there.
    """

    attempt: int
    node_ids: tuple[str, ...]
    each: Amount
    revision: int = 0
    claimed: Counter[str] = field(init=False)
    misses: int = 0
    delay: asyncio.TimerHandle | None = None
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.claimed = Counter(self.node_ids)

    def resize(self, node_ids: tuple[str, ...]) -> None:
        """Note that it was ordered to have these workers."""
        self.revision += 1
        self.node_ids = node_ids
        self.claimed = self.claimed | Counter(node_ids)  # a new one: other threads may be reading it

    def has_become(self, node_ids: Sequence[str], running_workers: int) -> float | None:
        """Note what the launcher says of it.

        Args:
            node_ids: the node of each worker that it holds.
            running_workers: how many of them train.

        Returns:
            Seconds to wait before it is resized again, longer each time; None when it has as many workers as it should.
        """
        is_as_ordered = len(node_ids) == len(self.node_ids)
        self.node_ids = tuple(node_ids)
        self.claimed = Counter(node_ids)
        if is_as_ordered:
            if running_workers >= len(node_ids):
                self.misses = 0
            return None
        self.misses += 1
        return min(FIRST_RESIZE_DELAY_S * 2.0 ** min(self.misses - 1, 10), LONGEST_RESIZE_DELAY_S)

    def end_delay(self) -> None:
        """Let it be resized at once."""
        if self.delay is not None:
            self.delay.cancel()
            self.delay = None


@dataclass
class Entry:
    """A job that has not ended, or whose gang is still there."""

    job: Job
    gang: Gang | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # While set, the job waits at its place in the queue and is not placed.
    backoff: asyncio.TimerHandle | None = None

    def end_backoff(self) -> None:
        """Let it be placed at once."""
        if self.backoff is not None:
            self.backoff.cancel()
            self.backoff = None

    def request(self) -> Request:
        return request_of(self.job.job_id, self.job.spec.resources, is_delayed=self.backoff is not None)

    def running(self, gang: Gang) -> Running:
        workers = self.job.spec.resources.workers
        return Running(self.job.job_id, gang.node_ids, workers, gang.each, frozenset(gang.refused))


Gangs = Mapping[tuple[str, int], Gang]
"""Gangs by job_id and attempt."""


def claims_of(gangs: Gangs, processes: Iterable[WorkerProcess]) -> tuple[dict[str, Amount], dict[str, tuple[int, ...]]]:
    """Tell what gangs hold on each node, and what of each GPU that they share; see `held_by` and `shares_of`."""
    return held_by(gangs.values()), shares_of(gangs, processes)


def held_by(gangs: Iterable[Gang]) -> dict[str, Amount]:
    """Sum what gangs hold on each node. Any thread may ask."""
    held: dict[str, Amount] = {}
    for gang in list(gangs):  # at once, before there are others
        for node_id, workers in gang.claimed.items():
            held[node_id] = held.get(node_id, Amount()) + gang.each * workers
    return held


def shares_of(gangs: Gangs, processes: Iterable[WorkerProcess]) -> dict[str, tuple[int, ...]]:
    """Tell what gangs hold of each GPU that their workers share, by node.

    Which GPU it is a worker says when it is up. For one that is not, Ray's choice is foreseen: the fullest GPU on which
    there is room.

    Args:
        gangs: any.
        processes: the worker processes that there are.
    """
    on: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    unknown: list[tuple[int, str]] = []
    known: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for process in processes:
        if process.job_id and len(process.gpu_ids) == 1:
            known[process.job_id, process.attempt, process.node_id].append(process.gpu_ids[0])
    for (job_id, attempt), gang in list(gangs.items()):
        if not 0 < gang.each.gpu < UNITS:
            continue
        for node_id, workers in gang.claimed.items():
            told = known[job_id, attempt, node_id][:workers]
            for gpu_id in told:
                on[node_id][gpu_id] += gang.each.gpu
            unknown += [(gang.each.gpu, node_id)] * (workers - len(told))
    for share, node_id in unknown:  # in the order in which they were admitted, which is that of Ray
        fullest = max((held, gpu) for gpu, held in [*on[node_id].items(), ("", -1)] if held + share <= UNITS)[1]
        on[node_id][fullest or f"not told {len(on[node_id])}"] += share
    return {node_id: tuple(held.values()) for node_id, held in on.items() if held}
