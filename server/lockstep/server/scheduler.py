"""Which queued jobs start now, and on which nodes: a pure function of queue, capacity and what is held.

Resources are counted in whole ten-thousandths, as Ray counts them: sums of floating-point shares would say that ten
workers of 0.1 CPUs do not fit on one CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lockstep.v1.job_spec_pb2 import ResourcesSpec

UNITS = 10_000


def units(amount: float) -> int:
    """Count an amount of a resource that is there, in ten-thousandths, rounded down."""
    return math.floor(round(amount * UNITS, 3))


@dataclass(frozen=True)
class Amount:
    """CPUs and GPUs in ten-thousandths."""

    cpu: int = 0
    gpu: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cpu + other.cpu, self.gpu + other.gpu)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cpu - other.cpu, self.gpu - other.gpu)

    def __mul__(self, count: int) -> Amount:
        return Amount(self.cpu * count, self.gpu * count)

    def holds(self, part: Amount) -> int:
        """Count how often `part` fits."""
        counts = [have // need for have, need in ((self.cpu, part.cpu), (self.gpu, part.gpu)) if need > 0]
        return max(0, min(counts)) if counts else 0


@dataclass(frozen=True)
class Node:
    """One node: what Lockstep may use of it, and what it has in all."""

    node_id: str
    usable: Amount
    total: Amount


@dataclass(frozen=True)
class Request:
    """What a queued job asks for: `workers` times `each`, all at once."""

    job_id: str
    workers: int
    each: Amount


@dataclass(frozen=True)
class Placement:
    """A decision: the job starts now, with rank r on node `node_ids[r]`."""

    job_id: str
    node_ids: tuple[str, ...]


def amount_of_worker(resources: ResourcesSpec) -> Amount:
    """Return what one worker takes; a share is rounded up, so that no node is ever overfilled."""
    cpu = math.ceil(round(resources.cpus_per_worker * UNITS, 3))
    return Amount(max(1, cpu), resources.gpus_per_worker * UNITS)


def request_of(job_id: str, resources: ResourcesSpec) -> Request:
    return Request(job_id, resources.workers, amount_of_worker(resources))


def plan(queue: Iterable[Request], nodes: Sequence[Node], held: Mapping[str, Amount]) -> list[Placement]:
    """Decide which jobs start.

    First come, first served: the first job that does not fit ends the plan, so that small jobs behind a large one never
    keep it waiting.

    Args:
        queue: what waits, first come first; read no further than needed.
        nodes: the cluster.
        held: what our gangs hold on each node, by node id.

    Returns:
        The jobs to start, in the order of the queue.
    """
    free = {node.node_id: node.usable - held.get(node.node_id, Amount()) for node in nodes}
    placements: list[Placement] = []
    for request in queue:
        node_ids = _place(request, free)
        if node_ids is None:
            break
        for node_id in node_ids:
            free[node_id] = free[node_id] - request.each
        placements.append(Placement(request.job_id, node_ids))
    return placements


def _place(request: Request, free: Mapping[str, Amount]) -> tuple[str, ...] | None:
    slots = {node_id: amount.holds(request.each) for node_id, amount in free.items()}
    if sum(slots.values()) < request.workers:
        return None
    roomy = [node_id for node_id, count in slots.items() if count >= request.workers]
    if roomy:
        # The tightest node that takes the whole gang: its all-reduce stays on one node, and large gaps stay whole.
        tightest = min(roomy, key=lambda node_id: (slots[node_id], node_id))
        return (tightest,) * request.workers
    node_ids: list[str] = []
    for node_id in sorted(slots, key=lambda node_id: (-slots[node_id], node_id)):
        node_ids += [node_id] * min(slots[node_id], request.workers - len(node_ids))
    return tuple(node_ids)


def why_it_never_fits(resources: ResourcesSpec, nodes: Sequence[Node]) -> str | None:
    """Say with numbers why a job cannot run on this cluster even when nothing else does; None when it can."""
    each = amount_of_worker(resources)
    if sum(node.total.holds(each) for node in nodes) >= resources.workers:
        return None
    cpus = sum(node.total.cpu for node in nodes) / UNITS
    gpus = sum(node.total.gpu for node in nodes) / UNITS
    each_words = _count(resources.cpus_per_worker, "CPU")
    if resources.gpus_per_worker:
        each_words += f" and {_count(resources.gpus_per_worker, 'GPU')}"
    asked = f"{_count(resources.workers, 'worker')} x {each_words}"
    there = f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')} on {_count(len(nodes), 'node')}"
    return (
        f"the job asks for {asked}; the cluster has {there}; "
        "lower resources.workers or what each worker takes, or use a larger cluster"
    )


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
