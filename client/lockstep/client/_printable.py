"""Text from elsewhere, made safe to show: the one place that does it."""

from __future__ import annotations

import sys
from typing import TextIO

# What is larger Python 3.11 writes to the end without an error when the reader leaves in the middle of it.
_PIECE = 8192


def printable(text: str) -> str:
    """Text with nothing that would steer a terminal: no escapes, no C1 controls, no change of direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write whole lines at once, on standard output unless told otherwise: whoever reads may be waiting for them.

    What goes to a file or a program is written as it is; what goes to a terminal is made printable.
    """
    stream = stream or sys.stdout
    text = text if text.endswith("\n") else f"{text}\n"
    text = printable(text) if stream.isatty() else text
    for start in range(0, len(text), _PIECE):
        stream.write(text[start : start + _PIECE])
    stream.flush()
