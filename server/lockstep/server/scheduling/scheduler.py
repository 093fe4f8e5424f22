"""Who starts now, who grows and who shrinks, and on which nodes: a pure function of queue, gangs and capacity.

Resources are counted in whole ten-thousandths, as Ray counts them: sums of floating-point shares would say that ten
workers of 0.1 CPUs do not fit on one CPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lockstep.contract.spec.resources import UNITS, gpus_of
from lockstep.contract.wording import count
from lockstep.v1.job_spec_pb2 import ResourcesSpec


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


class Free:
    """What of a node is free: CPUs, and of each of its GPUs, since a worker's share has to be of one GPU.

    Args:
        usable: what Lockstep may use of the node.
        held: what of that is held.
        shares: of each GPU that is shared, what workers hold of it; whoever holds whole GPUs is not among them.
    """

    def __init__(self, usable: Amount, held: Amount = Amount(), shares: Sequence[int] = ()) -> None:
        self.cpu, self.gpu = usable.cpu - held.cpu, usable.gpu - held.gpu
        # What others hold may be of any GPU: it is taken to be of one that we do not share, where there is one.
        whole, rest = divmod(self.gpu + sum(shares) - UNITS * len(shares), UNITS)
        self.gpus = [max(0, UNITS - share) for share in shares] + [UNITS] * whole + [rest] * (whole >= 0)

    def holds(self, each: Amount) -> int:
        """Count how many workers of this size fit."""
        counts = [have // need for have, need in ((self.cpu, each.cpu), (self.gpu, each.gpu)) if need > 0]
        if each.gpu >= UNITS:
            counts.append(self.gpus.count(UNITS) // (each.gpu // UNITS))
        elif each.gpu > 0:
            counts.append(sum(free // each.gpu for free in self.gpus))
        return max(0, min(counts)) if counts else 0

    def take(self, each: Amount) -> None:
        """Have a worker of this size hold its part, which fits: of the fullest GPU that has room, as Ray gives it."""
        self.cpu, self.gpu = self.cpu - each.cpu, self.gpu - each.gpu
        if each.gpu >= UNITS:
            for _ in range(each.gpu // UNITS):
                self.gpus.remove(UNITS)
        elif each.gpu > 0:
            chosen = min((free, index) for index, free in enumerate(self.gpus) if free >= each.gpu)[1]
            self.gpus[chosen] -= each.gpu


@dataclass(frozen=True)
class Node:
    """One node: what Lockstep may use of it, and what it has in all; its name is for people."""

    node_id: str
    usable: Amount
    total: Amount
    name: str = ""


@dataclass(frozen=True)
class Request:
    """What a queued job asks for: `workers` times `each` at once, or as many as fit when that is `min_workers`.

    Attributes:
        is_delayed: it may not start yet; the room that it would get is kept for it.
    """

    job_id: str
    workers: int
    min_workers: int
    each: Amount
    is_delayed: bool = False


@dataclass(frozen=True)
class Running:
    """A gang that may grow or shrink: where its workers are, how many its job wants, and where it may not grow."""

    job_id: str
    node_ids: tuple[str, ...]
    workers: int
    each: Amount
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Placement:
    """A decision: the job starts now, with rank r on node `node_ids[r]`."""

    job_id: str
    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class Resize:
    """A decision: the gang shall have a worker on each of `node_ids` from now on."""

    job_id: str
    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All decisions of one look.

    Attributes:
        waits_for_room: the first job that does not fit, if there is one; nobody behind it was looked at.
    """

    placements: tuple[Placement, ...]
    resizes: tuple[Resize, ...]
    waits_for_room: str | None = None


def amount(cpus: float, gpus: float) -> Amount:
    """Return what one worker takes; a share is rounded up, so that no node is ever overfilled."""
    return Amount(max(1, math.ceil(round(cpus * UNITS, 3))), math.ceil(round(gpus * UNITS, 3)))


def amount_of_worker(resources: ResourcesSpec) -> Amount:
    """Return what one worker of a job takes."""
    return amount(resources.cpus_per_worker, gpus_of(resources))


def request_of(job_id: str, resources: ResourcesSpec, *, is_delayed: bool = False) -> Request:
    return Request(job_id, resources.workers, resources.min_workers, amount_of_worker(resources), is_delayed)


def plan(
    queue: Iterable[Request],
    gangs: Iterable[Running],
    nodes: Sequence[Node],
    held: Mapping[str, Amount],
    warm: Mapping[tuple[str, Amount], int] = MappingProxyType({}),
    shares: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Plan:
    """Decide which jobs start, grow and shrink.

    First come, first served: the first job that does not fit ends the admissions, so that small jobs behind a large one
    never keep it waiting. Gangs grow only when nobody waits. A gang that has more workers than its job wants gives up
    its last ones.

    Args:
        queue: what waits, first come first; read no further than needed.
        gangs: who may grow or shrink, in the order in which they grow.
        nodes: the cluster.
        held: what our gangs hold on each node, by node id.
        warm: how many idle workers each node has that hold so much. They hold nothing that a job needs; a gang goes
            where they are, if it can choose.
        shares: of each node, what our gangs hold of each GPU that is shared.

    Returns:
        The jobs to start, in the order of the queue, and the gangs to change.
    """
    warm = Counter(warm)
    free = free_of(nodes, held, shares)
    placements: list[Placement] = []
    gangs = list(gangs)
    waits_for_room: str | None = None
    for request in queue:
        node_ids = _place(request, free, warm)
        if node_ids is None:
            waits_for_room = request.job_id
            break
        _take(free, warm, node_ids, request.each)
        if not request.is_delayed:
            placements.append(Placement(request.job_id, node_ids))
    resizes = [Resize(g.job_id, g.node_ids[: g.workers]) for g in gangs if len(g.node_ids) > g.workers]
    if waits_for_room is None:
        for gang in gangs:
            added = _room_to_grow(gang, free, warm)
            if added:
                _take(free, warm, added, gang.each)
                resizes.append(Resize(gang.job_id, gang.node_ids + added))
    return Plan(tuple(placements), tuple(resizes), waits_for_room)


def free_of(nodes: Iterable[Node], held: Mapping[str, Amount], shares: Mapping[str, Sequence[int]]) -> dict[str, Free]:
    """Return what is free of each node; see `plan`."""
    nothing = Amount()
    return {
        node.node_id: Free(node.usable, held.get(node.node_id, nothing), shares.get(node.node_id, ())) for node in nodes
    }


def _take(free: dict[str, Free], warm: Counter[tuple[str, Amount]], node_ids: Iterable[str], each: Amount) -> None:
    for node_id in node_ids:
        free[node_id].take(each)
        warm[node_id, each] = max(0, warm[node_id, each] - 1)


def _place(request: Request, free: Mapping[str, Free], warm: Counter[tuple[str, Amount]]) -> tuple[str, ...] | None:
    slots = {node_id: there.holds(request.each) for node_id, there in free.items()}
    workers = min(request.workers, sum(slots.values()))
    if workers < request.min_workers:
        return None
    roomy = [node_id for node_id, count in slots.items() if count >= workers]
    ready = {node_id: min(workers, warm[node_id, request.each]) for node_id in slots}
    if roomy:
        # One node that takes the whole gang, so that its all-reduce stays on it: the one with most workers that are
        # warm, else the tightest, so that large gaps stay whole.
        best = min(roomy, key=lambda node_id: (-ready[node_id], slots[node_id], node_id))
        return (best,) * workers
    return _fill(slots, sorted(slots, key=lambda node_id: (-slots[node_id], -ready[node_id], node_id)), workers)


def _room_to_grow(gang: Running, free: Mapping[str, Free], warm: Counter[tuple[str, Amount]]) -> tuple[str, ...]:
    missing = gang.workers - len(gang.node_ids)
    if missing <= 0:
        return ()
    slots = {node_id: there.holds(gang.each) for node_id, there in free.items() if node_id not in gang.refused}
    here = Counter(gang.node_ids)
    # Where it is already, if it can be.
    order = sorted(slots, key=lambda node_id: (-here[node_id], -warm[node_id, gang.each], -slots[node_id], node_id))
    return _fill(slots, order, missing)


def _fill(slots: Mapping[str, int], order: Iterable[str], workers: int) -> tuple[str, ...]:
    node_ids: list[str] = []
    for node_id in order:
        node_ids += [node_id] * min(slots[node_id], workers - len(node_ids))
    return tuple(node_ids)


def why_it_never_fits(resources: ResourcesSpec, nodes: Sequence[Node]) -> str | None:
    """Say with numbers why a job cannot run on this cluster even when nothing else does; None when it can.

    A job runs with fewer workers than it wants, as long as there are `min_workers`, so that these are enough.

    Args:
        resources: what the job asks for.
        nodes: the cluster.
    """
    each = amount_of_worker(resources)
    room = sum(Free(node.total).holds(each) for node in nodes)
    if room >= resources.min_workers:
        return None
    cpus = sum(node.total.cpu for node in nodes) / UNITS
    gpus = sum(node.total.gpu for node in nodes) / UNITS
    each_words = count(resources.cpus_per_worker, "CPU")
    if resources.gpus_per_worker:
        each_words += f" and {count(gpus_of(resources), 'GPU')}"
    at_least = "at least " if resources.min_workers < resources.workers else ""
    asked = f"{at_least}{count(resources.min_workers, 'worker')} x {each_words}"
    there = f"{count(cpus, 'CPU')} and {count(gpus, 'GPU')} on {count(len(nodes), 'node')}"
    if resources.gpus_per_worker and not gpus:
        hint = "set resources.gpus_per_worker to 0 to train on CPUs, or use a cluster with GPUs"
    elif room:
        hint = f"lower resources.min_workers to {room}, or what each worker takes, or use a larger cluster"
    else:
        hint = "lower what each worker takes, or use larger nodes"
    return f"the job asks for {asked}; the cluster has {there}; {hint}"
