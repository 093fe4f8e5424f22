"""When what stands in a spool was printed. Python's streams note it as they write; a spool may be read much later."""

import time
from collections import deque

COARSE_S = 0.02
"""What is printed within so short a time has one time; file systems tell that of a write as coarsely."""
MOST_MARKS = 20_000
"""Times that are kept until the lines are read; of more, the oldest go."""


class PrintTimes:
    """Times by position in one spool.

    Any thread writes, also within a signal handler or a destructor that prints, so there is no lock; two that print at
    the same moment cost a little of the precision. One thread reads.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=MOST_MARKS)
        self._newest = (0, 0.0)

    def note(self, position: int) -> None:
        """All before this position is printed by now."""
        now, newest = time.time(), self._newest
        if 0 <= now - newest[1] < COARSE_S:
            self._newest = (position, newest[1])
        else:
            self._marks.append(newest)
            self._newest = (position, now)

    def of(self, end: int, read_at: float) -> float:
        """When a line was printed.

        What Python did not write itself, but a library in C or a child process, was there when Python wrote next, or
        when it was read.

        Args:
            end: position behind it; grows from call to call.
            read_at: when it was read, as time.time() tells, as does the answer.
        """
        while self._marks and self._marks[0][0] < end:
            self._marks.popleft()
        position, printed_at = self._marks[0] if self._marks else self._newest
        return min(printed_at, read_at) if position >= end else read_at
