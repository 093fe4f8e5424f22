"""How watchers are woken: an event per watcher, set after each write, that says only "look again"."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.server.errors import ShuttingDown

_AT_ONCE = 4
"""So few watchers are woken at once."""
_PACE_S = 0.0001
"""Time between two watchers of a round: somewhat more than it takes to serve one watcher."""


class Notifier:
    """One event per watcher, by job. A watcher reads what is new from the store, so a slow one costs nothing here.

    The watchers of a job are woken in rounds, one after the other: calls of others are answered in between. What
    happens while a round goes on is told by one more.
    """

    def __init__(self) -> None:
        self._by_job: dict[str, _Watchers] = {}
        self._rounds = itertools.count(1)
        self._closing = False

    @contextmanager
    def listen(self, job_id: str, wakeup: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the job has changed or the server shuts down; it starts unset.

        Args:
            job_id: the job.
            wakeup: an event to use, for whoever listens to two. Default: a new one.
        """
        wakeup = wakeup or asyncio.Event()
        watchers = self._by_job.get(job_id)
        if watchers is None:
            watchers = self._by_job[job_id] = _Watchers(self._rounds)
        watchers.events[wakeup] = None
        try:
            yield wakeup
        finally:
            del watchers.events[wakeup]
            if not watchers.events:
                watchers.close()
                self._by_job.pop(job_id, None)

    def notify(self, job_id: str) -> None:
        """Wake the watchers of a job."""
        watchers = self._by_job.get(job_id)
        if watchers is not None:
            watchers.notify()

    def round_of(self, job_id: str) -> int:
        """Return the number of the newest round of a job that somebody listens to.

        What is read in a round shows everything that happened before the round began, and is as good as a look of
        one's own to everybody who was woken in it.
        """
        return self._by_job[job_id].round

    def count(self) -> int:
        """Count the watchers."""
        return sum(len(watchers.events) for watchers in self._by_job.values())

    def close(self) -> None:
        """Wake everybody, to leave."""
        self._closing = True
        for watchers in self._by_job.values():
            for wakeup in watchers.events:
                wakeup.set()

    def check(self) -> None:
        """Raise ShuttingDown when watchers shall leave."""
        if self._closing:
            raise ShuttingDown


class _Watchers:
    """The events of one job, in the order in which their watchers came."""

    def __init__(self, rounds: Iterator[int]) -> None:
        self.events: dict[asyncio.Event, None] = {}
        self.round = next(rounds)
        self._rounds = rounds
        self._is_waking = False
        self._wakes_again = False
        self._timer: asyncio.Handle | None = None

    def notify(self) -> None:
        if self._is_waking:
            self._wakes_again = True
            return
        self.round = next(self._rounds)
        if len(self.events) <= _AT_ONCE:
            for wakeup in self.events:
                wakeup.set()
            return
        self._is_waking = True
        self._wakes_again = False
        self._wake_next(iter(list(self.events)), asyncio.get_running_loop().time())

    def _wake_next(self, events: Iterator[asyncio.Event], due: float) -> None:
        loop = asyncio.get_running_loop()
        wakeup = next(events, None)
        if wakeup is None:
            self._end_round()
            return
        wakeup.set()
        due += _PACE_S
        if due <= loop.time():
            self._timer = loop.call_soon(self._wake_next, events, due)
        else:
            self._timer = loop.call_at(due, self._wake_next, events, due)

    def _end_round(self) -> None:
        self._is_waking = False
        self._timer = None
        if self._wakes_again:
            self.notify()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
