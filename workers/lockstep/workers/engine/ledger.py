"""The account of where a rank's time goes, by phase.

The thread that trains says which phase begins; the time up to then belongs to the one before, so that the phases add up
to the whole. What a step is made of beside the exchange is looked at in one of SAMPLED_EVERY only, and the time of
the others is divided in the same proportion: on a GPU, where a launch returns at once, that takes events on the device.
"""

import bisect
import contextlib
import itertools
import threading
from collections.abc import Mapping
from time import perf_counter
from typing import NamedTuple, Protocol

import torch

from lockstep.contract.facts import STEP_BOUNDS_S, Phase

SAMPLED_EVERY, SAMPLED_EVERY_S = 64, 1.0
"""Steps between two that are looked into; fewer where they take long."""
WEIGHT_OF_OLD = 0.75
"""How much the samples before count, each time a new one comes."""


PARTS = (Phase.DATA, Phase.HOST_TO_DEVICE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
"""What the time of a step before its exchange goes to. On a GPU the optimizer of the step before still works then."""
EXCHANGE = int(Phase.EXCHANGE)
UNDIVIDED = len(Phase)
"""In place of a phase: what a step does before its exchange, not looked into."""


class Account(NamedTuple):
    """What a ledger says.

    Attributes:
        seconds: time by phase, in the order of `Phase`.
        under_way: the part of it that is not settled yet: of a step, or an exchange, that has not ended. It becomes
            HEALING when a rank is lost before it has.
        steps: that were taken.
        examples: of their global minibatches.
        step_counts: how many of the steps took at most each of STEP_BOUNDS_S but more than the one before, and how
            many took longer.
        step_seconds: time of the steps together.
        flops_per_step: of the matrix products and convolutions of a step on all ranks; 0 while they are not counted.
    """

    seconds: tuple[float, ...]
    under_way: tuple[float, ...]
    steps: int
    examples: int
    step_counts: tuple[int, ...]
    step_seconds: float
    flops_per_step: float


class Marks(Protocol):
    """Marks on the line of what a device does."""

    def set(self, phase: Phase) -> None:
        """What the device is given from here on belongs to a phase."""

    def seconds(self) -> dict[Phase, float]:
        """Time of each phase since the first mark, once the device has done all; forgets the marks."""

    def forget(self) -> None:
        """Forget the marks: what they were set for does not come to its end."""


class Waits(Protocol):
    """Counts how long a rank has waited for others in all, in seconds."""

    waited_s: float

    def waiting_s(self) -> float:
        """How long it has been waiting now; 0 when it does not."""


class Alone:
    """A rank that waits for nobody."""

    waited_s = 0.0

    def waiting_s(self) -> float:
        return 0.0


class Ledger:
    """The ledger of one rank. One thread at a time writes; any may read.

    A change of phase only leaves an entry (phase, time, time waited by then); they are added up many at a time. Between
    the kernels of a small model nothing that Python needs is left in the caches: each call here costs microseconds.

    Args:
        spent_s: time that was spent on the start before this was made.

    Attributes:
        is_sampled: the step that is under way is one of those that are looked into.
        flops_per_step: of a step on all ranks; 0 while they are not counted.
    """

    def __init__(self, spent_s: float = 0.0) -> None:
        self._lock = threading.Lock()  # over everything but new entries and new steps at the end of their lists
        self._seconds = [0.0] * (len(Phase) + 1)
        self._seconds[Phase.START_UP] = spent_s
        self._entries: list[tuple[int, float, float]] = [(Phase.START_UP, perf_counter(), 0.0)]
        self._step_entry: int | None = None
        self._taken: list[tuple[float, int]] = []
        self._steps = self._examples = 0
        self._step_counts = [0] * (len(STEP_BOUNDS_S) + 1)
        self._step_seconds = 0.0
        self._waits: Waits = Alone()
        self._marks: Marks | None = None
        self._begun = self._next_sample = 0
        self._next_sample_at = 0.0
        self.is_sampled = False
        self._sampled = dict.fromkeys(PARTS, 0.0)
        self.flops_per_step = 0.0

    def follow(self, waits: Waits, marks: Marks | None = None) -> None:
        """Learn how waits are told from the rest of an exchange.

        Args:
            waits: of this rank's group.
            marks: on the line of the device that computes; None on a CPU.
        """
        self._entries.append((self._entries[-1][0], perf_counter(), waits.waited_s))
        self._waits, self._marks = waits, marks

    def enter(self, phase: Phase) -> None:
        """A phase begins, and the one before is over, on the device too."""
        self._entries.append((phase, perf_counter(), self._waits.waited_s))
        if self.is_sampled and self._marks is not None:
            self._marks.set(phase)

    def part(self, phase: Phase) -> None:
        """A part of a sampled step before its exchange begins: DATA, HOST_TO_DEVICE, FORWARD or BACKWARD."""
        if self._marks is None:
            self._entries.append((phase, perf_counter(), self._waits.waited_s))
        else:
            self._marks.set(phase)

    def begin_step(self) -> None:
        """A step begins, with its data."""
        self._step_entry = len(self._entries)
        now = perf_counter()
        self._begun += 1
        if self._begun <= 2 or self._begun >= self._next_sample or now >= self._next_sample_at:
            self.is_sampled = True
            self._next_sample, self._next_sample_at = self._begun + SAMPLED_EVERY, now + SAMPLED_EVERY_S
        self._entries.append((UNDIVIDED, now, self._waits.waited_s))
        if self.is_sampled:
            self.part(Phase.DATA)

    def end_step(self, seconds: float, examples: int) -> None:
        """The step is done; what follows up to the next phase belongs to the optimizer.

        Args:
            seconds: how long it took.
            examples: of its global minibatch.
        """
        self._taken.append((seconds, examples))
        if self.is_sampled:
            self.is_sampled = False
            self._end_sample()
        self._step_entry = None  # not before the sample is divided: until then it is told as under way

    def leave_step(self) -> None:
        """The step ends without being taken: whoever trains was asked to stop, or cannot go on."""
        self._step_entry = None
        self._end_sampling()

    def lose_step(self) -> None:
        """A rank was lost or is to join: what was spent on what cannot be ended, a step or an exchange, is healing."""
        self._end_sampling()
        with self._lock:
            unsettled = self._unsettled(self._entries)
            if unsettled < len(self._entries):
                _, began, waited_s = self._entries[unsettled]
                self._entries[unsettled:] = [(Phase.HEALING, began, waited_s)]
            else:
                phase = Phase.HEALING if self._begun else Phase.START_UP
                self._entries.append((phase, perf_counter(), self._waits.waited_s))
        self._step_entry = None

    def _unsettled(self, entries: list[tuple[int, float, float]]) -> int:
        """Number of the first entry of what may still turn out to be healing; behind the last for none."""
        if self._step_entry is not None:
            return self._step_entry
        return len(entries) - (entries[-1][0] == EXCHANGE)

    def _end_sampling(self) -> None:
        self.is_sampled = False
        if self._marks is not None:
            self._marks.forget()

    def account(self) -> Account:
        """What the ledger says now; any thread may ask."""
        with self._lock:
            seconds, entries, taken = self._seconds.copy(), self._entries.copy(), self._taken.copy()
            steps, examples, step_seconds = self._steps, self._examples, self._step_seconds
            counts, sampled = self._step_counts.copy(), self._sampled.copy()
            unsettled = self._unsettled(entries)
        waited_s = self._waits.waited_s + self._waits.waiting_s()
        entries.append((entries[-1][0], perf_counter(), waited_s))
        under_way = [0.0] * len(seconds)
        self._add(under_way, entries[unsettled:])
        self._add(seconds, entries)
        for account in (seconds, under_way):
            divide(account, sampled)
        for duration, size in taken:
            counts[bisect.bisect_left(STEP_BOUNDS_S, duration)] += 1
            step_seconds += duration
            examples += size
        told, not_settled = tuple(seconds[: len(Phase)]), tuple(under_way[: len(Phase)])
        return Account(
            told, not_settled, steps + len(taken), examples, tuple(counts), step_seconds, self.flops_per_step
        )

    def _end_sample(self) -> None:
        """Add up all entries but the last, whose phase goes on, and learn from the step that has just been sampled."""
        measured = self._marks.seconds() if self._marks is not None else {}
        with self._lock:
            before = self._seconds.copy()
            self._add(self._seconds, self._entries)
            self._entries = self._entries[-1:]
            if self._marks is None:  # the optimizer is noted in every step
                measured = {part: self._seconds[part] - before[part] for part in PARTS if part is not Phase.OPTIMIZER}
            # As `account` has told meanwhile.
            divide(self._seconds, self._sampled if any(self._sampled.values()) else measured)
            if self._begun > 1:  # in the first step much is done for the first time
                for part in PARTS:
                    self._sampled[part] = WEIGHT_OF_OLD * self._sampled[part] + measured.get(part, 0.0)
            for duration, size in self._taken:
                self._step_counts[bisect.bisect_left(STEP_BOUNDS_S, duration)] += 1
                self._step_seconds += duration
                self._examples += size
            self._steps += len(self._taken)
            self._taken = []

    def _add(self, seconds: list[float], entries: list[tuple[int, float, float]]) -> None:
        """Add the time between entries to the phases that it belongs to."""
        for (phase, began, waited_before), (_, ended, waited_s) in itertools.pairwise(entries):
            spent = ended - began
            if phase == EXCHANGE:
                # NCCL does not tell the wait from the rest.
                waited = spent if self._marks is not None else min(spent, max(0.0, waited_s - waited_before))
                seconds[Phase.EXCHANGE_WAIT] += waited
                spent -= waited
            seconds[phase] += spent


def divide(seconds: list[float], sampled: Mapping[Phase, float]) -> None:
    """Divide the time of steps that were not looked into, as that of those that were."""
    total = sum(sampled.get(part, 0.0) for part in PARTS)
    for part in PARTS:
        share = sampled.get(part, 0.0) / total if total else float(part is Phase.FORWARD)
        seconds[part] += seconds[UNDIVIDED] * share
    seconds[UNDIVIDED] = 0.0


class CudaMarks:
    """Marks on the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Phase, torch.cuda.Event]] = []

    def set(self, phase: Phase) -> None:
        """Record an event on the stream. What is wrong with the device is told by what computes there."""
        with contextlib.suppress(RuntimeError):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((phase, event))

    def seconds(self) -> dict[Phase, float]:
        """Wait for the device, and read the time between the events."""
        self.set(Phase.IDLE)
        marks, self._marks = self._marks, []
        seconds: dict[Phase, float] = {}
        with contextlib.suppress(RuntimeError):
            for (phase, begun), (_, ended) in itertools.pairwise(marks):
                ended.synchronize()
                seconds[phase] = seconds.get(phase, 0.0) + 1e-3 * begun.elapsed_time(ended)
        return seconds

    def forget(self) -> None:
        """Forget them."""
        self._marks = []


def marks_of(device: torch.device) -> Marks | None:
    """Marks on a device that is given its work ahead of time; None for a CPU."""
    return CudaMarks(device) if device.type == "cuda" else None
