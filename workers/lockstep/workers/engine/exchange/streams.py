"""Streams of a device, for what is exchanged while the device computes something else.

A launch on a GPU returns before its work is done. Whoever gives work to another stream has to say what it comes behind,
and what comes behind it. On a CPU what was called is done, and there is nothing to say.
"""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Line(Protocol):
    """A line of work beside that of the thread that trains; used by one thread at a time but for `note`."""

    def note(self) -> torch.cuda.Event | None:
        """A mark behind all that the current stream of this thread has been given."""

    def behind(self, mark: torch.cuda.Event | None) -> AbstractContextManager[None]:
        """What is given to the device within comes behind the mark, in a stream of its own."""

    def join(self) -> None:
        """Have what the current stream of this thread is given next come behind all of this line."""


class HostLine:
    """On a CPU."""

    def note(self) -> None:
        return None

    def behind(self, mark: torch.cuda.Event | None) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def join(self) -> None:
        pass


class SideStream:
    """On a GPU.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def note(self) -> torch.cuda.Event:
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        return mark

    @contextlib.contextmanager
    def behind(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        assert mark is not None
        self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):  # of this thread, whose GPU may have been another
            yield

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def line_of(device: torch.device) -> Line:
    """A line of a device's own."""
    return SideStream(device) if device.type == "cuda" else HostLine()


@functools.cache
def stream_for_training(device: torch.device) -> torch.cuda.Stream:
    """The one of a GPU, so that memory that a job has left is of use to the next."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def training_line(device: torch.device) -> Iterator[None]:
    """Around training: what a GPU is given goes on a stream that no other waits for by itself, and can be recorded.

    What the default stream of this thread was given before comes before it, and what it is given after comes after.
    """
    if device.type != "cuda":
        yield
        return
    outside, own = torch.cuda.current_stream(device), stream_for_training(device)
    own.wait_stream(outside)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        with contextlib.suppress(RuntimeError):  # what is wrong with the device was told by what computes there
            outside.wait_stream(own)
