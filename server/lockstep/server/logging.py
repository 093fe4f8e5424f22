"""Structured logs on standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import Literal, TextIO, cast

import structlog


class _Forgiving(io.TextIOBase):
    """Standard error for logs: what cannot be written there is lost, and is no failure of whoever logs.

    Its reader may have gone (`| head`), its terminal may be closed, its disk may be full.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def isatty(self) -> bool:
        return self._file.isatty()


def open_closed_streams() -> None:
    """Open what of standard input, output and error was closed at the start, as some supervisors leave them.

    Otherwise the next file or socket would get the number, and Ray and the launcher write their words into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            assert null == number, "nobody else opens files at the start"
        os.set_inheritable(number, True)  # also one that somebody else has opened in place of a closed one
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def configure(log_format: Literal["console", "json"]) -> None:
    """Set up logging for the whole process."""
    stream = cast(TextIO, _Forgiving(sys.stderr))
    renderer: structlog.typing.Processor
    if log_format == "json":
        processors: list[structlog.typing.Processor] = [
            # Without the values of variables: among them are tokens, and whatever users send.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
        ]
        renderer = structlog.processors.JSONRenderer()
    else:
        processors = []
        renderer = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *processors,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    # Libraries speak through the standard module; of them only what went wrong is of interest.
    logging.basicConfig(stream=stream, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
