"""Whoever wants to know how training goes, and may steer it."""

from collections.abc import Callable, Sequence
from enum import Enum, IntEnum
from typing import NamedTuple

from lockstep.workers.engine.metrics import Point, Progress
from lockstep.workers.engine.state.checkpoint import Checkpoint


class Wish(IntEnum):
    """What a rank was asked to bring about at the next step boundary."""

    GO_ON = 0
    STOP = 1
    KEEP_AND_STOP = 2
    """Stop with a checkpoint."""


class Activity(Enum):
    """What a rank is doing."""

    LOAD = "load"
    """It reads the data, makes the model, or reads a checkpoint."""
    JOIN = "join"
    HAND_OVER = "hand over"
    COMPUTE = "compute"
    EXCHANGE = "exchange"
    UPDATE = "update"
    EVALUATE = "evaluate"
    REPORT = "report"
    CHECKPOINT = "checkpoint"
    FINISH = "finish"


class Result(NamedTuple):
    """The outcome of training.

    Attributes:
        weights_digest: SHA-256, hex, of the model's state.
        final_metrics: the last value of each result metric.
    """

    weights_digest: str
    final_metrics: dict[str, float]


class Listener:
    """Told of everything, on every rank; rank 0 is the one that passes it on. This one does nothing."""

    def entered(self, activity: Activity, step: int) -> None:
        """An activity begins, of the step with this number; a sign of life. Called for every shard."""

    def has_data(self, digest: str) -> None:
        """The data is at hand; `digest` is that of `DataModule.digest`."""

    def started(self, progress: Progress, hardware: str) -> None:
        """Everything is ready; the next step comes now. Called in every generation."""

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """New metric points; called between two steps, must return soon."""

    def wish(self) -> Wish:
        """What this rank was asked for; looked at before every step."""
        return Wish.GO_ON

    def refusable(self) -> int:
        """Number of the order to stop that is under way, if training may go on when its state cannot be kept; or 0."""
        return 0

    def refuse_stop(self, number: int, why: str) -> None:
        """Training goes on: the state could not be kept, which the order to stop of this number, and those before, ask.

        Args:
            number: of the order; this rank may not have had it yet.
            why: in words; empty on all ranks but 0.
        """

    def finished(self, result: Result, look: Callable[[], None]) -> None:
        """All steps are done. Returns, on rank 0, when whoever must know has confirmed.

        Args:
            result: what became of them.
            look: to be called now and then while that takes; what it raises ends the wait, and the end comes again.
        """

    def healed(self, pause_s: float) -> None:
        """The first step of a generation is done, this long after the last one before; NaN if there was none."""

    def checkpointed(self, kept: Sequence[Checkpoint]) -> None:
        """These are all checkpoints that are whole now; called on rank 0, from another thread."""

    def noted(self, words: str) -> None:
        """Something that people should know; may be called from another thread."""

    def unacknowledged(self) -> list[Point]:
        """Points that may not have arrived where they are kept."""
        return []

    def take_over(self, points: list[Point]) -> None:
        """Hold these points as the unacknowledged ones: this rank has just received the state of another."""

    def acknowledged_step(self) -> int:
        """The step up to which rank 0 knows that all points have arrived; looked at on rank 0 only."""
        return 0

    def acknowledge(self, step: int) -> None:
        """Points up to this step have arrived; called on the other ranks."""
