"""The account of where a rank's time goes, by phase.

The thread that trains says which phase begins; the time up to then belongs to the one before, so that the phases add up
to the whole. On a GPU, where a launch returns at once, the host's clock tells only how long a step takes as a whole;
how that divides is measured on the device, by events, in one step of SAMPLED_EVERY.
"""

import bisect
import itertools
from collections.abc import Callable
from enum import IntEnum
from time import perf_counter
from typing import NamedTuple, Protocol

import torch

SAMPLED_EVERY = 16
STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the counts of step durations; the server publishes them under the same bounds."""


class Phase(IntEnum):
    """What a rank's time is spent on; ledger.proto says what belongs where."""

    START_UP = 0
    DATA = 1
    HOST_TO_DEVICE = 2
    FORWARD = 3
    BACKWARD = 4
    EXCHANGE = 5
    EXCHANGE_WAIT = 6
    OPTIMIZER = 7
    VALIDATION = 8
    CHECKPOINT = 9
    HEALING = 10
    IDLE = 11


EXCHANGE = Phase.EXCHANGE  # quicker to get at than the member, for what is done many times in a step


class Account(NamedTuple):
    """What a ledger says.

    Attributes:
        seconds: time by phase, in the order of `Phase`.
        steps: that were taken.
        examples: of their global minibatches.
        step_counts: how many of the steps took at most each of STEP_BOUNDS_S but more than the one before, and how
            many took longer.
        step_seconds: time of the steps together.
        flops_per_step: of the matrix products and convolutions of a step on all ranks; 0 while they are not counted.
    """

    seconds: tuple[float, ...]
    steps: int
    examples: int
    step_counts: tuple[int, ...]
    step_seconds: float
    flops_per_step: float


class Marks(Protocol):
    """Marks on the line of what a device does."""

    def set(self, phase: Phase) -> None:
        """What the device is given from here on belongs to a phase."""

    def shares(self) -> dict[Phase, float]:
        """Seconds of each phase since the first mark, once the device has done all; forgets the marks."""


class Ledger:
    """The ledger of one rank. One thread at a time writes; any may read.

    Args:
        spent_s: time that was spent on the start before this was made.
    """

    def __init__(self, spent_s: float = 0.0) -> None:
        self._seconds = [0.0] * len(Phase)
        self._seconds[Phase.START_UP] = spent_s
        self._phase = Phase.START_UP
        self._since = perf_counter()
        self._waited_s: Callable[[], float] = _never
        self._waited_before = 0.0
        self._before_step: list[float] = []
        self._marks: Marks | None = None
        self._is_in_device_step = self._is_sampled = False
        self._undivided_s = 0.0
        self._shares: dict[Phase, float] = {}
        self._steps = self._examples = 0
        self._step_counts = [0] * (len(STEP_BOUNDS_S) + 1)
        self._step_seconds = 0.0
        self.flops_per_step = 0.0

    def follow(self, waited_s: Callable[[], float], marks: Marks | None = None) -> None:
        """Learn how waits are told from the rest of an exchange.

        Args:
            waited_s: tells how long this rank has waited for others in all; grows.
            marks: on the line of the device that computes; None on a CPU.
        """
        self._waited_s, self._waited_before = waited_s, waited_s()
        self._marks, self._is_sampled = marks, False

    def enter(self, phase: Phase) -> None:
        """A phase begins, and the one before is over."""
        if self._is_in_device_step:
            if self._is_sampled and self._marks is not None:
                self._marks.set(phase)
            return
        now = perf_counter()
        spent = now - self._since
        if self._phase is EXCHANGE:
            waited = min(spent, self._waited_s() - self._waited_before)
            self._seconds[Phase.EXCHANGE_WAIT] += waited
            spent -= waited
        self._seconds[self._phase] += spent
        if phase is EXCHANGE:
            self._waited_before = self._waited_s()
        self._phase, self._since = phase, now

    def begin_step(self) -> None:
        """A step begins, with its data."""
        self.enter(Phase.DATA)
        self._before_step = self._seconds.copy()
        if self._marks is not None:
            self._is_in_device_step = True
            self._is_sampled = self._steps % SAMPLED_EVERY == 0 or not self._shares
            if self._is_sampled:
                self._marks.set(Phase.DATA)

    def end_step(self, seconds: float, examples: int) -> None:
        """The step is done; what follows up to the next phase belongs to the optimizer.

        Args:
            seconds: how long it took.
            examples: of its global minibatch.
        """
        if self._is_in_device_step:
            self._end_device_step()
        self._before_step = []
        self._steps += 1
        self._examples += examples
        self._step_counts[bisect.bisect_left(STEP_BOUNDS_S, seconds)] += 1
        self._step_seconds += seconds

    def lose_step(self) -> None:
        """A rank was lost or is to join: what was spent on the step that cannot be ended is spent on healing."""
        self._is_in_device_step = False
        self.enter(Phase.HEALING)
        if self._before_step:
            spent = sum(self._seconds) - sum(self._before_step)
            self._seconds, self._before_step = self._before_step, []
            self._seconds[Phase.HEALING] += spent
        elif not self._steps:
            self._phase = Phase.START_UP

    def account(self) -> Account:
        """What the ledger says now; any thread may ask."""
        while True:
            since, phase = self._since, self._phase
            seconds, undivided, shares = self._seconds.copy(), self._undivided_s, self._shares
            if since == self._since:  # else the other thread has written meanwhile
                break
        seconds[phase] += max(0.0, perf_counter() - since)
        for part, share in shares.items():
            seconds[part] += undivided * share
        counts = tuple(self._step_counts)
        return Account(tuple(seconds), self._steps, self._examples, counts, self._step_seconds, self.flops_per_step)

    def _end_device_step(self) -> None:
        """Note a step that the host has seen as a whole, and divide those before when it is a sampled one."""
        if self._is_sampled and self._marks is not None:
            seconds = self._marks.shares()
            for phase, share in self._shares.items():  # as `account` has told meanwhile
                self._seconds[phase] += self._undivided_s * share
            self._undivided_s = 0.0
            total = sum(seconds.values())
            self._shares = {phase: value / total for phase, value in seconds.items()} if total else {Phase.FORWARD: 1.0}
        now = perf_counter()
        self._undivided_s += now - self._since
        self._is_in_device_step = False
        self._phase, self._since = Phase.OPTIMIZER, now


class CudaMarks:
    """Marks on the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Phase, torch.cuda.Event]] = []

    def set(self, phase: Phase) -> None:
        """Record an event. All of an exchange that the stream sees is a wait: NCCL does not tell one from the other."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((Phase.EXCHANGE_WAIT if phase is Phase.EXCHANGE else phase, event))

    def shares(self) -> dict[Phase, float]:
        """Wait for the device, and read the time between the events, in seconds."""
        self.set(Phase.IDLE)
        marks, self._marks = self._marks, []
        marks[-1][1].synchronize()
        seconds: dict[Phase, float] = {}
        for (phase, begun), (_, ended) in itertools.pairwise(marks):
            seconds[phase] = seconds.get(phase, 0.0) + 1e-3 * begun.elapsed_time(ended)
        return seconds


def marks_of(device: torch.device) -> Marks | None:
    """Marks on a device that is given its work ahead of time; None for a CPU."""
    return CudaMarks(device) if device.type == "cuda" else None


def _never() -> float:
    return 0.0
