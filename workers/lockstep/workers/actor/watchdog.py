"""Whether a rank still gets anywhere: a hung one told from a slow one, and from one that waits for others."""

import statistics
import threading
import time
from collections import deque

from lockstep.workers import awake_clock
from lockstep.workers.calls import HANG_FIRST_FACTOR, HANG_MEDIAN_FACTOR, WARM_UP_S
from lockstep.workers.engine import Activity

OWN_WORK = frozenset({Activity.LOAD, Activity.COMPUTE, Activity.UPDATE, Activity.EVALUATE})
"""Activities in which a rank waits for nobody else."""
BEATS_REMEMBERED = 64


class Watchdog:
    """The signs of life of a rank that trains.

    Args:
        hang_timeout_s: how long a shard, or a batch of the validation, may always take.
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._lock = threading.Lock()
        self._activity: Activity | None = None
        self._step = 0
        self._first_step: int | None = None
        self._since = time.monotonic()
        awake_clock.now()  # from here on it is noticed when this process is stopped
        self._frozen_before_s = awake_clock.frozen_s()
        # What one beat covers is a shard of a minibatch here, and a batch as large as a minibatch there.
        self._seconds = {
            activity: deque[float](maxlen=BEATS_REMEMBERED) for activity in (Activity.COMPUTE, Activity.EVALUATE)
        }

    def beat(self, activity: Activity, step: int) -> None:
        """An activity begins; called for every shard, and for every batch of the validation."""
        now = time.monotonic()
        with self._lock:
            if self._activity in self._seconds:
                self._seconds[self._activity].append(now - self._since)
            if activity is Activity.COMPUTE and self._first_step is None:
                self._first_step = step
            self._activity, self._step, self._since = activity, step, now
            self._frozen_before_s = awake_clock.frozen_s()

    def why_hung(self) -> str | None:
        """Why this rank counts as hung, in words; None when it does not."""
        awake_clock.now()  # notices that this process was stopped until now
        with self._lock:
            if self._activity is not None and self._activity not in OWN_WORK:
                return None
            limit_s, words = (
                HANG_FIRST_FACTOR * self._hang_timeout_s,
                f"{HANG_FIRST_FACTOR} times recovery.hang_timeout_s",
            )
            if self._activity is None:
                limit_s, words = min(WARM_UP_S, limit_s), ""
                what = "was waiting for the end of the warm-up of its process"
            elif self._activity is Activity.LOAD:
                what = "was reading its data or a checkpoint"
            else:
                what = f"was in phase {self._activity.value} of step {self._step}"
                if self._is_known():
                    seconds = self._seconds[
                        Activity.EVALUATE if self._activity is Activity.EVALUATE else Activity.COMPUTE
                    ]
                    limit_s = max(self._hang_timeout_s, HANG_MEDIAN_FACTOR * statistics.median(seconds or [0.0]))
                    words = ""
            idle_s = time.monotonic() - self._since - (awake_clock.frozen_s() - self._frozen_before_s)
            if idle_s <= limit_s:
                return None
            return f"{what} for {idle_s:.0f} s (allowed: {limit_s:.0f} s{', ' if words else ''}{words})"

    def _is_known(self) -> bool:
        """Whether there is something to measure the activity by."""
        if self._activity is Activity.EVALUATE:
            return bool(self._seconds[Activity.EVALUATE])
        return self._first_step is not None and self._step > self._first_step
