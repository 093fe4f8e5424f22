"""Metric points, and the exact sums that they are made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Progress(NamedTuple):
    """How far training is: steps done, steps in all, epochs done with the fraction of the current one."""

    step: int
    total_steps: int
    epoch: float


class Point(NamedTuple):
    """One value of one metric after a step.

    Attributes:
        is_timing: the value belongs to the clock, not to the curve.
    """

    name: str
    step: int
    epoch: float
    value: float
    is_timing: bool = False


class Sums(NamedTuple):
    """Sums over examples: of losses, of weights (how many losses count) and of right answers."""

    loss: float
    weight: float
    correct: float

    @classmethod
    def over(cls, rows: Iterable[Sequence[float]]) -> "Sums":
        """Add rows up in order, in double precision."""
        loss = weight = correct = 0.0
        for row in rows:
            loss, weight, correct = loss + row[0], weight + row[1], correct + row[2]
        return cls(loss, weight, correct)

    def means(self, prefix: str, has_accuracy: bool) -> dict[str, float]:
        """Mean loss and, for a model that is judged by it, accuracy; nothing where nothing counts."""
        if self.weight == 0:
            return {}
        means = {f"{prefix}_loss": self.loss / self.weight}
        if has_accuracy:
            means[f"{prefix}_accuracy"] = self.correct / self.weight
        return means


class Step(NamedTuple):
    """What a step brought.

    Attributes:
        sums: over its minibatch.
        examples: size of the minibatch.
        gradient_norm: L2 norm of the gradient before clipping; NaN when nobody asked for it.
    """

    sums: Sums
    examples: int
    gradient_norm: float


@dataclass
class Window:
    """What happened since the last point of the training metrics.

    Attributes:
        sums: exact or in double precision.
        examples: how many went in.
        steps: how many were taken.
        seconds: how long they took.
    """

    sums: Sums = field(default_factory=lambda: Sums(0.0, 0.0, 0.0))
    examples: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, sums: Sums, examples: int, seconds: float) -> None:
        """Add one step."""
        self.sums = Sums.over((self.sums, sums))
        self.examples += examples
        self.steps += 1
        self.seconds += seconds

    def timings(self) -> dict[str, float]:
        """Examples per second and seconds per step, over the window."""
        return {"samples_per_second": self.examples / self.seconds, "step_seconds": self.seconds / self.steps}

    def to_json(self) -> list[Any]:
        """The window as JSON can say it."""
        return [list(self.sums), self.examples, self.steps, self.seconds]

    @classmethod
    def from_json(cls, said: list[Any]) -> "Window":
        """The reverse of `to_json`."""
        return cls(Sums(*said[0]), *said[1:])
