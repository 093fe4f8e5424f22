"""What the coordinator knows only in memory: gangs, the resources they hold, and the line to the launcher."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from lockstep.server.job import Job
from lockstep.server.scheduler import UNITS, Amount, Node, Request, request_of, units
from lockstep.v1.internal_service_pb2 import ClusterCapacity, ConnectLauncherResponse, StartGang


class LauncherLine:
    """One connection of the launcher: the orders that wait to go down."""

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
    """The workers of one attempt, from admission until the launcher says that they are gone.

    Attributes:
        line: the connection of the launcher that looks after it.
        token: proves that a report comes from this attempt; never stored, so that no report outlives this process.
        sequence: the highest report number that is stored.
    """

    attempt: int
    node_ids: tuple[str, ...]
    each: Amount
    line: LauncherLine
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    sequence: int = 0


@dataclass
class Entry:
    """A job that has not ended, or whose gang is still there."""

    job: Job
    gang: Gang | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # While set, the job waits at its place in the queue and is not placed.
    backoff: asyncio.TimerHandle | None = None

    def request(self) -> Request:
        return request_of(self.job.job_id, self.job.spec.resources)


def held_by(gangs: Iterable[Gang]) -> dict[str, Amount]:
    """Sum what gangs hold on each node."""
    held: dict[str, Amount] = {}
    for gang in gangs:
        for node_id in gang.node_ids:
            held[node_id] = held.get(node_id, Amount()) + gang.each
    return held


def start_order(job: Job, gang: Gang, reports_address: str, epoch: int) -> ConnectLauncherResponse:
    """Write the order to start a gang."""
    start = StartGang(
        job_id=job.job_id,
        attempt=gang.attempt,
        spec=job.spec,
        node_ids=gang.node_ids,
        coordinator_address=reports_address,
        attempt_token=gang.token,
        epoch=epoch,
    )
    return ConnectLauncherResponse(start_gang=start)


def nodes_of(capacity: ClusterCapacity) -> tuple[Node, ...]:
    """Translate what the launcher says of the cluster."""
    return tuple(
        Node(
            node.node_id,
            Amount(units(node.cpus), units(node.gpus)),
            Amount(units(max(node.total_cpus, node.cpus)), units(max(node.total_gpus, node.gpus))),
        )
        for node in capacity.nodes
    )


def single_node(cpus: float, gpus: float) -> tuple[Node, ...]:
    """Describe an embedded cluster before it is up."""
    amount = Amount(int(cpus * UNITS), int(gpus * UNITS))
    return (Node("embedded", amount, amount),)
