"""Signals that end a process, in a worker of an embedded Ray: not the worker, but what its training starts.

The coordinator starts its Ray with these signals blocked, since a supervisor sends them to all processes of a service
at once, and a worker writes a checkpoint first. A process that training starts would inherit that, and could not be
ended in the ordinary way. So a worker takes the signals and does nothing; what it forks or executes is as usual.
"""

import os
import signal
from types import FrameType

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_taken: set[signal.Signals] = set()
"""Those that a handler of ours takes, without effect."""


def heed_in_children_only() -> None:
    """Take those of ENDING that are blocked, without effect on this process; by its main thread.

    Where none is blocked, as in somebody else's Ray, everything stays as it is.
    """
    pid = os.getpid()

    def ignore(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a fork that has kept this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in ENDING.intersection(signal.pthread_sigmask(signal.SIG_BLOCK, [])):
        signal.signal(number, ignore)  # a handler, which a program that is executed does not inherit
        _taken.add(number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken)


def start_children_as_usual() -> None:
    """Have what this thread starts take ENDING; after `heed_in_children_only`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken)
