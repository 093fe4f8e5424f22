"""A command that is told to end clears up behind itself, as after Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def clear_up_at_signals() -> None:
    """Turn SIGTERM and SIGHUP into an exit, so that what a command has begun is undone on its way out.

    One that is ignored, as nohup does with SIGHUP, stays so. A command with handlers of its own puts them in place of
    these.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    for other in _SIGNALS:  # a second one shall not cut the clearing up short
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
