"""A clock for whoever waits for signs of life from others: it stands still while this process itself is stopped.

All processes of a machine may be stopped for a while and go on: `docker pause`, a snapshot of a virtual machine. To one
that measures silence by `time.monotonic()` all others have said nothing for as long, and it would end them, though they
are as well as it is. So a thread ticks; where a tick comes late, this process did not run meanwhile.
"""

import threading
from collections.abc import Callable
from time import monotonic

TICK_S = 0.5
"""How often the clock looks whether this process runs."""
LONGEST_GAP_S = 1.5
"""How late a look may be on a busy machine; after more than that this process was stopped."""


class AwakeClock:
    """Time in which this process ran. Callable from any thread; a call is a tick, too.

    Args:
        monotonic_s: tells the time, in seconds from any start.
    """

    def __init__(self, monotonic_s: Callable[[], float] = monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._ticked_at = monotonic_s()
        self._frozen_s = 0.0

    def now(self) -> float:
        """As `time.monotonic()`, less the time in which this process was stopped."""
        with self._lock:
            now = self._monotonic_s()
            gap_s = now - self._ticked_at
            if gap_s > LONGEST_GAP_S:
                self._frozen_s += gap_s - TICK_S
            self._ticked_at = now
            return now - self._frozen_s

    def frozen_s(self) -> float:
        """How long this process was stopped in all, as far as has been noticed; costs nothing."""
        return self._frozen_s


_clock = AwakeClock()
_wakes = threading.Event()


def now() -> float:
    """Seconds in which this process ran, from any start; for what `time.monotonic()` is used for elsewhere."""
    _keep_ticking()
    return _clock.now()


def frozen_s() -> float:
    """How long this process was stopped in all, as far as has been noticed; costs nothing."""
    return _clock.frozen_s()


def _keep_ticking() -> None:
    if not _wakes.is_set():
        _wakes.set()
        _clock.now()
        threading.Thread(target=_tick, name="awake", daemon=True).start()


def _tick() -> None:
    sleeps = threading.Event()
    while True:
        sleeps.wait(TICK_S)
        _clock.now()
