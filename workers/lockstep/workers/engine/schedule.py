"""When something is due."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When something is due, in steps.

    Attributes:
        total_steps: steps in all.
        log_every: between two points of a training metric; one more comes at the end.
        evaluate_every: between two validations; one more comes at the end.
    """

    total_steps: int
    log_every: int
    evaluate_every: int

    def is_logged(self, step: int) -> bool:
        """Whether the training metrics get a point after this step."""
        return step == self.total_steps or step % self.log_every == 0

    def is_evaluated(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step == self.total_steps or step % self.evaluate_every == 0
