"""How far the host runs ahead of the device that it gives its work.

A launch on a GPU returns at once, also on one that hangs. The host is one shard ahead, so that the device always has
something to do, and what is told of the progress, by which a hang is told from a slow step, is true to one shard.
"""

from typing import Protocol

import torch


class Pace(Protocol):
    """Keeps the host close to its device."""

    def shard_is_given(self) -> None:
        """A shard was given to the device; returns when all shards before it are done."""

    def wait(self) -> None:
        """Return when the device has done what this rank gave it, so that its work ends within its own phase.

        What the device exchanges goes on in a line of its own.
        """


class HostPace:
    """On a CPU what was called is done."""

    def shard_is_given(self) -> None:
        pass

    def wait(self) -> None:
        pass


class GpuPace:
    """On a GPU.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: torch.cuda.Event | None = None

    def shard_is_given(self) -> None:
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self._device))
        if self._before is not None:
            self._before.synchronize()
        self._before = mark

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()
        self._before = None


def pace_of(device: torch.device) -> Pace:
    """That of a rank which computes there."""
    return GpuPace(device) if device.type == "cuda" else HostPace()
