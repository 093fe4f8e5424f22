"""How a process learns which ranks it trains with, from one generation to the next.

Someone outside, who knows who lives, tells every member of a new generation with `form`. The thread that trains takes
it up with `next_group` when it has lost a peer, which `form` makes sure of.
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lockstep.workers.engine.errors import EngineError, PeerLost
from lockstep.workers.engine.exchange.group import Group, Via
from lockstep.workers.engine.exchange.transport import Endpoint

JOIN_TIMEOUT_S = 60.0
"""How long the members of a generation may take to meet. Whoever is told of a new one gives up the old at once."""


class Dismissed(EngineError):
    """The process belongs to no group any more."""


class Generation(NamedTuple):
    """One membership: its number, from 1 and growing, this process's rank, and the endpoints of all ranks."""

    number: int = 0
    rank: int = 0
    addresses: Sequence[str] = ()


class Membership:
    """The generations that this process is told to belong to.

    Args:
        endpoint: where this process takes connections.
        key: secret that all ranks of the job know.
        device: where this rank computes.
        lost: called, by the thread that trains, with the number of each generation that it has lost, before it waits
            for the next; with 0 before the first.
        via: how tensors of the device travel; see `Group.join`.

    Attributes:
        first_number: the number of the first generation that this process was told of, 0 before that.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: bytes,
        device: torch.device | str = "cpu",
        lost: Callable[[int], None] = lambda number: None,
        via: Via = "auto",
    ) -> None:
        self._endpoint, self._key, self._device, self._tell_lost, self._via = endpoint, key, device, lost, via
        self._changed = threading.Condition()
        self._told = Generation()
        self._joined = 0
        self._group: Group | None = None
        self.first_number = 0
        self._is_dismissed = False

    @property
    def is_dismissed(self) -> bool:
        """Whether this process was told that it is in no later generation."""
        return self._is_dismissed

    @property
    def current(self) -> Generation:
        """The newest generation that this process was told of."""
        return self._told

    def form(self, number: int, rank: int, addresses: Sequence[str]) -> None:
        """Tell of a generation; an older one than the newest is ignored. Callable from any thread."""
        with self._changed:
            if number > self._told.number:
                self._told = Generation(number, rank, tuple(addresses))
                self.first_number = self.first_number or number
                self._endpoint.supersede(number)
                self._changed.notify_all()

    def dismiss(self) -> None:
        """End the membership: this process is in no later generation. Callable from any thread."""
        with self._changed:
            self._is_dismissed = True
            self._endpoint.supersede(self._told.number + 1)
            self._changed.notify_all()

    def next_group(self) -> Group:
        """The group of a newer generation than the one before, as soon as there is one; called when a peer was lost.

        Raises:
            Dismissed: there will be none.
        """
        while True:
            self._tell_lost(self._joined)
            with self._changed:
                self._changed.wait_for(lambda: self._told.number > self._joined or self._is_dismissed)
                if self._is_dismissed:
                    raise Dismissed("this worker was dismissed")
                told = self._told
                self._joined = told.number
            try:
                self._group = Group.join(
                    self._endpoint,
                    told.rank,
                    told.addresses,
                    self._key,
                    self._device,
                    told.number,
                    JOIN_TIMEOUT_S,
                    self._via,
                )
            except PeerLost:
                continue
            return self._group

    def close(self) -> None:
        """Leave the last group and take no more connections; called by the thread that has trained."""
        if self._group is not None:
            self._group.leave()
        self._endpoint.close()
