"""What the coordinator knows only in memory: gangs, the resources they hold, and the line to the launcher."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lockstep.server.job import Job
from lockstep.server.scheduler import UNITS, Amount, Node, Request, Running, amount, request_of, units
from lockstep.v1.internal_service_pb2 import ClusterCapacity, ConnectLauncherResponse, WorkerProcess

FIRST_RESIZE_DELAY_S = 1.0
LONGEST_RESIZE_DELAY_S = 60.0
_ID_SHOWN = 8


class LauncherLine:
    """One connection of the launcher: the orders that wait to go down.

    Attributes:
        is_ready: the launcher has told what gangs there are; before that it is given no orders.
    """

    def __init__(self) -> None:
        self._orders: asyncio.Queue[ConnectLauncherResponse | None] = asyncio.Queue()
        self.is_ready = False

    def order(self, order: ConnectLauncherResponse) -> None:
        """Queue an order."""
        self._orders.put_nowait(order)

    def end(self) -> None:
        """End the connection after the orders that are queued."""
        self._orders.put_nowait(None)

    async def orders(self) -> AsyncIterator[ConnectLauncherResponse]:
        """Yield orders until the line is ended."""
        while (order := await self._orders.get()) is not None:
            yield order


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


def held_by(gangs: Iterable[Gang]) -> dict[str, Amount]:
    """Sum what gangs hold on each node. Any thread may ask."""
    held: dict[str, Amount] = {}
    for gang in list(gangs):  # at once, before there are others
        for node_id, workers in gang.claimed.items():
            held[node_id] = held.get(node_id, Amount()) + gang.each * workers
    return held


def nodes_of(capacity: ClusterCapacity) -> tuple[Node, ...]:
    """Translate what the launcher says of the cluster.

    Nodes have names of their own from here on, wherever people see them: hosts may be called alike, and then the front
    of the node's id stands behind the name.
    """
    names = _names_of({node.node_id: node.node_name for node in capacity.nodes})
    return tuple(
        Node(
            node.node_id,
            Amount(units(node.cpus), units(node.gpus)),
            Amount(units(max(node.total_cpus, node.cpus)), units(max(node.total_gpus, node.gpus))),
            names[node.node_id],
        )
        for node in capacity.nodes
    )


def _names_of(hosts: Mapping[str, str]) -> dict[str, str]:
    """A name for each node, by id, from those of the hosts: no two have the same."""
    names = {node_id: host or node_id for node_id, host in hosts.items()}
    for length in (*range(_ID_SHOWN, max(map(len, names), default=0), _ID_SHOWN), None):
        times = Counter(names.values())
        if len(times) == len(names):
            break
        for node_id, name in names.items():
            if times[name] > 1:
                names[node_id] = f"{hosts[node_id]}-{node_id[:length]}"
    return names


def warm_on(processes: Iterable[WorkerProcess]) -> Counter[tuple[str, Amount]]:
    """Count the idle workers by node and by what each holds."""
    idle = (process for process in processes if process.HasField("idle_since"))
    return Counter((process.node_id, amount(process.cpus, process.gpus)) for process in idle)


def single_node(cpus: float, gpus: float) -> tuple[Node, ...]:
    """Describe an embedded cluster before it is up."""
    amount = Amount(int(cpus * UNITS), int(gpus * UNITS))
    return (Node("embedded", amount, amount),)
