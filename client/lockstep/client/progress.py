"""Shows on standard error how a job gets on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lockstep.client.errors import LockstepError
from lockstep.client.types import JobState, JobUpdate

if TYPE_CHECKING:
    from lockstep.client.job import Job

_SHOWN_METRICS = {
    "train_loss": "loss {:.4g}",
    "train_accuracy": "accuracy {:.3f}",
    "val_loss": "val loss {:.4g}",
    "val_accuracy": "val accuracy {:.3f}",
    "samples_per_second": "{:,.0f} samples/s",
}
_ON_THE_BAR = ("train_loss", "train_accuracy", "samples_per_second")
_METRICS_EVERY_S = 0.5
_LINE_EVERY_S = 5.0


class _LatestMetrics:
    """The last value of each metric that is shown, read at most twice a second."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._after_step = 0
        self._next_read = 0.0

    def read(self, job: Job) -> None:
        if not job.state.has_ended and (time.monotonic() < self._next_read or job.state is JobState.QUEUED):
            return
        self._next_read = time.monotonic() + _METRICS_EVERY_S
        try:
            points = job.metrics(_SHOWN_METRICS, after_step=self._after_step)
        except LockstepError:
            return  # the stream of the job itself says what is wrong
        for point in sorted(points, key=lambda point: point.step):
            self.values[point.name] = point.value
            self._after_step = point.step

    def text(self, names: tuple[str, ...] = tuple(_SHOWN_METRICS)) -> str:
        return "  ".join(_SHOWN_METRICS[name].format(self.values[name]) for name in names if name in self.values)


def show_progress(job: Job, updates: Iterator[JobUpdate]) -> None:
    """Show updates until there are no more."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        _show_bar(job, updates, console)
    else:
        _show_lines(job, updates, console)


def describe_epoch(job: Job) -> str:
    """How far training is, such as "epoch 1.5/3"."""
    wanted = job.spec.training.max_epochs if job.spec.training.HasField("max_epochs") else None
    done = math.floor(job.progress.epoch * 100) / 100
    return f"epoch {done:g}/{wanted}" if wanted else f"epoch {done:g}"


def _show_bar(job: Job, updates: Iterator[JobUpdate], console: Console) -> None:
    metrics = _LatestMetrics()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=10), TextColumn("{task.fields[metrics]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task: TaskID = bar.add_task(str(job.state).lower(), total=None, metrics="")
        for _ in updates:
            metrics.read(job)
            if job.progress.step or job.state in (JobState.RUNNING, JobState.SUCCEEDED):
                description = describe_epoch(job)
            else:
                description = str(job.state).lower()
            bar.update(
                task,
                description=escape(description),
                completed=job.progress.step,
                total=job.progress.total_steps or None,
                metrics=escape(metrics.text(_ON_THE_BAR)),
            )


def _show_lines(job: Job, updates: Iterator[JobUpdate], console: Console) -> None:
    metrics = _LatestMetrics()
    next_line = 0.0
    for update in updates:
        for event in update.events:
            console.print(f"{event.state.lower()}: {event.message}", markup=False, soft_wrap=True)
        if job.state is not JobState.RUNNING or time.monotonic() < next_line:
            continue
        next_line = time.monotonic() + _LINE_EVERY_S
        metrics.read(job)
        progress = job.progress
        of_total = f"/{progress.total_steps}" if progress.total_steps else ""
        line = f"{describe_epoch(job)}  step {progress.step}{of_total}  {metrics.text()}"
        console.print(line.rstrip(), markup=False, soft_wrap=True)
