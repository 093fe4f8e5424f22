"""How watchers are woken: a bell per watcher, rung after each write, that says only "look again"."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.server.errors import ShuttingDown

_AT_ONCE = 4
"""Bells of so few are rung at once."""
_PACE_S = 0.0001
"""Time between two bells of a round: somewhat more than it takes to serve one watcher."""


class Bells:
    """One bell per watcher, by job. A watcher reads what is new from the store, so a slow one costs nothing here.

    The bells of a job are rung in rounds, one after the other: calls of others are answered in between. What happens
    while a round goes on is told by one more.
    """

    def __init__(self) -> None:
        self._by_job: dict[str, _Listeners] = {}
        self._rounds = itertools.count(1)
        self._closing = False

    @contextmanager
    def listen(self, job_id: str, bell: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the job has changed or the server shuts down; it starts unset.

        Args:
            job_id: the job.
            bell: an event to use, for whoever listens to two. Default: a new one.
        """
        bell = bell or asyncio.Event()
        listeners = self._by_job.get(job_id)
        if listeners is None:
            listeners = self._by_job[job_id] = _Listeners(self._rounds)
        listeners.bells[bell] = None
        try:
            yield bell
        finally:
            del listeners.bells[bell]
            if not listeners.bells:
                listeners.close()
                self._by_job.pop(job_id, None)

    def ring(self, job_id: str) -> None:
        """Wake the watchers of a job."""
        listeners = self._by_job.get(job_id)
        if listeners is not None:
            listeners.ring()

    def round_of(self, job_id: str) -> int:
        """Return the number of the newest round of a job that somebody listens to.

        What is read in a round shows everything that happened before the round began, and is as good as a look of
        one's own to everybody whose bell was rung in it.
        """
        return self._by_job[job_id].round

    def count(self) -> int:
        """Count the watchers."""
        return sum(len(listeners.bells) for listeners in self._by_job.values())

    def close(self) -> None:
        """Wake everybody, to leave."""
        self._closing = True
        for listeners in self._by_job.values():
            for bell in listeners.bells:
                bell.set()

    def check(self) -> None:
        """Raise ShuttingDown when watchers shall leave."""
        if self._closing:
            raise ShuttingDown


class _Listeners:
    """The bells of one job, in the order in which their watchers came."""

    def __init__(self, rounds: Iterator[int]) -> None:
        self.bells: dict[asyncio.Event, None] = {}
        self.round = next(rounds)
        self._rounds = rounds
        self._is_ringing = False
        self._rings_again = False
        self._timer: asyncio.Handle | None = None

    def ring(self) -> None:
        if self._is_ringing:
            self._rings_again = True
            return
        self.round = next(self._rounds)
        if len(self.bells) <= _AT_ONCE:
            for bell in self.bells:
                bell.set()
            return
        self._is_ringing = True
        self._rings_again = False
        self._ring_next(iter(list(self.bells)), asyncio.get_running_loop().time())

    def _ring_next(self, bells: Iterator[asyncio.Event], due: float) -> None:
        loop = asyncio.get_running_loop()
        bell = next(bells, None)
        if bell is None:
            self._end_round()
            return
        bell.set()
        due += _PACE_S
        if due <= loop.time():
            self._timer = loop.call_soon(self._ring_next, bells, due)
        else:
            self._timer = loop.call_at(due, self._ring_next, bells, due)

    def _end_round(self) -> None:
        self._is_ringing = False
        self._timer = None
        if self._rings_again:
            self.ring()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
