"""What a rank writes into its job's log about its own work."""

import logging
import math
from collections.abc import Callable, Sequence

from lockstep.workers.actor.output import LOGGER
from lockstep.workers.actor.reporter import Reporter
from lockstep.workers.engine import Point, Progress, Result
from lockstep.workers.engine.state.checkpoint import Checkpoint

log = logging.getLogger(LOGGER)


class TrainingLog(Reporter):
    """A reporter that also logs the main events."""

    _logged_step = -1
    _train_loss: Point | None = None

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Log a validation, on rank 0, with the newest train_loss, which may be of an earlier step."""
        super().progressed(progress, points)
        results = [point for point in points if not point.is_timing]
        self._train_loss = next((point for point in results if point.name == "train_loss"), self._train_loss)
        if self._leads and any(point.name.startswith("val_") for point in results):
            if self._train_loss is not None and self._train_loss not in results:
                results.insert(0, self._train_loss)
            values = ", ".join(_shown(point, progress.step) for point in results)
            log.info("epoch %.2f, step %d of %d: %s", progress.epoch, progress.step, progress.total_steps, values)

    def healed(self, pause_s: float) -> None:
        """Log that training goes on after a change of the workers."""
        why = " and ".join(self._pauses)
        super().healed(pause_s)
        if why and not math.isnan(pause_s):
            log.info("training goes on, %s after a pause of %.0f ms", why, 1e3 * pause_s)

    def checkpointed(self, kept: Sequence[Checkpoint]) -> None:
        """Log a new checkpoint."""
        super().checkpointed(kept)
        newest = max((checkpoint.step for checkpoint in kept), default=-1)
        if newest > self._logged_step:
            self._logged_step = newest
            log.info("the checkpoint of step %d is written", newest)

    def noted(self, words: str) -> None:
        """Log what people are told."""
        super().noted(words)
        log.info("%s", words)

    def finished(self, result: Result, look: Callable[[], None]) -> None:
        """Log the end."""
        log.info("all steps are done; the digest of the weights is %s", result.weights_digest)
        super().finished(result, look)


def _shown(point: Point, step: int) -> str:
    """A value after `step`, in words."""
    since = "" if point.step == step else f" (of step {point.step})"
    return f"{point.name}{since} {point.value:.5g}"
