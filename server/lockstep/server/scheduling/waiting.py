"""Why a job waits: what it asks for, what is free, and behind whom. Found out when somebody looks, never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from lockstep.contract.spec.resources import UNITS
from lockstep.contract.wording import count, part_of
from lockstep.server.scheduling.scheduler import Amount, Node, Request, free_of

WAITS = "waits for resources"
"""What a job says that has just been queued, until somebody looks."""


@dataclass(frozen=True)
class QueuePlace:
    """A place in the queue.

    Attributes:
        ahead: how many jobs are before it.
        first: the job_id of the first of all.
    """

    ahead: int
    first: str


class Room:
    """What of a cluster is free at one moment.

    Args:
        nodes: the cluster.
        held: what gangs hold on each node, by node_id.
        shares: of each node, what they hold of each GPU that is shared.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        held: Mapping[str, Amount],
        shares: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        self._places = list(free_of(nodes, held, shares).values())
        self._usable = sum((node.usable for node in nodes), start=Amount())
        self._free = self._usable - sum((held.get(node.node_id, Amount()) for node in nodes), start=Amount())
        self._found: dict[Amount, int] = {}  # thousands of jobs may be looked at, of few sizes

    def for_workers(self, each: Amount) -> int:
        """How many workers of this size would find a place."""
        if each not in self._found:
            self._found[each] = sum(place.holds(each) for place in self._places)
        return self._found[each]

    @cached_property
    def words(self) -> str:
        """Such as "1 of 2 CPUs" and "0 of 1 GPU", of what there is."""
        parts = [part_of(max(0, self._free.cpu) / UNITS, self._usable.cpu / UNITS, "CPU")]
        if self._usable.gpu:
            parts.append(part_of(max(0, self._free.gpu) / UNITS, self._usable.gpu / UNITS, "GPU"))
        return " and ".join(parts)


def why_it_waits(request: Request, place: QueuePlace, room: Room) -> str:
    """Say what a queued job waits for."""
    each = count(request.each.cpu / UNITS, "CPU")
    if request.each.gpu:
        each += f" and {count(request.each.gpu / UNITS, 'GPU')}"
    least = f", or at least {request.min_workers}," if request.min_workers < request.workers else ""
    fit = room.for_workers(request.each)
    asked = f"{count(request.workers, 'worker')}{least} with {each} each; room for {fit} now ({room.words} free)"
    if not place.ahead:
        return f"waits for {asked}"
    others = f" and {count(place.ahead - 1, 'other')}" if place.ahead > 1 else ""
    return f"waits behind {place.first}{others} for {asked}"
