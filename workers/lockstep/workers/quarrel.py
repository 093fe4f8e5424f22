"""Workers that live and have lost each other: brought together again, but not for ever."""

import time

QUARREL_S = 2.0
"""How long workers may be without each other while all of them live, before they are brought together again."""
MAX_QUARRELS = 5
"""How often they are, within QUARREL_MEMORY_S, before the attempt is given up."""
QUARREL_MEMORY_S = 60.0


class Quarrel:
    """Whether workers are without each other, and how often they were of late."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._count = 0
        self._last = 0.0

    @property
    def deadline(self) -> float | None:
        """When they have to be brought together; None while they are."""
        return None if self._since is None else self._since + QUARREL_S

    def begin(self) -> None:
        """A worker has lost the others."""
        if self._since is None:
            self._since = time.monotonic()

    def end(self) -> None:
        """They are told to meet."""
        self._since = None

    def is_due(self, now: float) -> bool:
        """Whether they have been without each other for too long."""
        return self.deadline is not None and now >= self.deadline

    def is_hopeless(self, now: float) -> bool:
        """Count this one; whether there were too many."""
        self._count = self._count + 1 if now < self._last + QUARREL_MEMORY_S else 1
        self._last = now
        return self._count > MAX_QUARRELS
