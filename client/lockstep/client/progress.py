"""Shows on standard error how a job gets on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from lockstep.client._console import SafeConsole
from lockstep.client.errors import LockstepError
from lockstep.client.types import JobState, JobUpdate, Result
from lockstep.contract.wording import count, part_of

if TYPE_CHECKING:
    from lockstep.client.job import Job

_SHOWN_METRICS = {
    "train_loss": "loss {:.4g}",
    "train_accuracy": "accuracy {:.3f}",
    "val_loss": "val loss {:.4g}",
    "val_accuracy": "val accuracy {:.3f}",
    "samples_per_second": "{:,.0f} samples/s",
}
_ON_THE_BAR = (
    tuple(_SHOWN_METRICS),
    ("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    ("train_loss", "val_loss", "val_accuracy"),
    ("train_loss", "val_accuracy"),
)
"""The first that finds room; what matters least is gone first."""
_AROUND_METRICS = 22
"""Columns of the bar, of the time and of the blanks between them."""
_METRICS_EVERY_S = 0.5
_LINE_EVERY_S = 5.0
_WAITS_AFTER_S = 1.0
"""A job that is queued for less is not said to wait: most start at once."""


class _LatestMetrics:
    """The last value of each metric that is shown, read at most twice a second."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._after_step = 0
        self._next_read = 0.0

    def read(self, job: Job) -> None:
        is_idle = job.state in (JobState.QUEUED, JobState.PAUSED)
        if not job.state.has_ended and (time.monotonic() < self._next_read or is_idle):
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

    def fitting(self, width: int) -> str:
        """As much as has room in so many columns."""
        texts = [self.text(names) for names in _ON_THE_BAR]
        return next((text for text in texts if len(text) <= width), texts[-1])


class _WhyItWaits:
    """Tells why a job is queued, once it has been for a while; again when it waits for something else.

    Args:
        console: where.
    """

    def __init__(self, console: SafeConsole) -> None:
        self._console = console
        self._timer: threading.Timer | None = None
        self._why = ""

    def heed(self, job: Job) -> None:
        why = job.state_reason if job.state is JobState.QUEUED else ""
        if why.partition(";")[0] != self._why.partition(";")[0]:  # what is free just now stands behind that
            self.end()
            if why:
                self._timer = threading.Timer(_WAITS_AFTER_S, self._tell, (f"queued: {why}",))
                self._timer.daemon = True
                self._timer.start()
            self._why = why

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def show_progress(job: Job, updates: Iterator[JobUpdate]) -> None:
    """Show updates until there are no more, then the result if there is one; a failure is told by who waits."""
    console = SafeConsole(stderr=True)
    waits = _WhyItWaits(console)
    try:
        (_show_bar if console.is_terminal else _show_lines)(job, _heeded(job, updates, waits), console)
    finally:
        waits.end()
    if job.result is not None:
        console.print(f"succeeded; {describe_metrics(job.result)}".removesuffix("; "), soft_wrap=True)


def _heeded(job: Job, updates: Iterator[JobUpdate], waits: _WhyItWaits) -> Iterator[JobUpdate]:
    for update in updates:
        waits.heed(job)
        yield update


def describe_metrics(result: Result) -> str:
    """The last values in one line, such as "train_loss 0.1, val_accuracy 0.97"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in result.final_metrics.items())


def describe_epoch(job: Job) -> str:
    """How far training is, such as "epoch 1.5/3"."""
    wanted = job.spec.training.max_epochs if job.spec.training.HasField("max_epochs") else None
    done = math.floor(job.progress.epoch * 100) / 100
    return f"epoch {done:g}/{wanted}" if wanted else f"epoch {done:g}"


def describe_workers(job: Job) -> str:
    """How many workers train, of how many are wanted, such as "2 of 3 workers"; empty while none do."""
    wanted = job.spec.resources.workers
    if not job.running_workers:
        return ""
    return part_of(job.running_workers, wanted, "worker")


def describe_heals(job: Job) -> str:
    """How often the job was healed, such as "2 heals"; empty when it never was."""
    return count(job.heals, "heal") if job.heals else ""


def describe_size(size_bytes: float) -> str:
    """A number of bytes as people say it, such as "4.2 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} bytes" if size_bytes != 1 else "1 byte"
    for unit in ("KiB", "MiB", "GiB"):
        size_bytes /= 1024
        if size_bytes < 1023.95:  # else it would be rounded to 1024.0
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:,.1f} TiB"


class _Speed(ProgressColumn):
    """Bytes a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{describe_size(speed)}/s", style="progress.data.speed")


@contextmanager
def download_bar() -> Iterator[Callable[[int, int], None]]:
    """Show how far a download is; yields what is to be told the bytes that have come and the bytes in all.

    Off a terminal nothing is shown.
    """
    console = SafeConsole(stderr=True)
    columns = (BarColumn(bar_width=10), DownloadColumn(binary_units=True), _Speed(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done_bytes, total_bytes: bar.update(task, completed=done_bytes, total=total_bytes)


def _describe(job: Job) -> str:
    """Where the job stands, in a few words: its epoch when it trains, else its state."""
    state = str(job.state).lower()
    if not job.progress.step and job.state not in (JobState.RUNNING, JobState.SUCCEEDED):
        return state
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return f"{state} at {describe_epoch(job)}"
    # Workers that are done leave one after the other: that is no lack of them.
    is_training = job.state is JobState.RUNNING and not 0 < job.progress.total_steps <= job.progress.step
    is_short = is_training and 0 < job.running_workers < job.spec.resources.workers
    facts = (describe_epoch(job), describe_workers(job) if is_short else "", describe_heals(job))
    return "  ".join(fact for fact in facts if fact)


def _show_bar(job: Job, updates: Iterator[JobUpdate], console: SafeConsole) -> None:
    metrics = _LatestMetrics()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=10), TextColumn("{task.fields[metrics]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task: TaskID = bar.add_task(str(job.state).lower(), total=None, metrics="")
        try:
            for _ in updates:
                metrics.read(job)
                where = _describe(job)
                bar.update(
                    task,
                    description=escape(where),
                    completed=job.progress.step,
                    total=job.progress.total_steps or None,
                    metrics=escape(metrics.fitting(console.width - len(where) - _AROUND_METRICS)),
                )
        except KeyboardInterrupt:
            # The terminal has written ^C into the line: drawn once more it would be there twice.
            bar.live.transient = True
            raise


def _show_lines(job: Job, updates: Iterator[JobUpdate], console: SafeConsole) -> None:
    metrics = _LatestMetrics()
    next_line, is_told = 0.0, True
    for update in updates:
        for event in update.events:
            if not event.state.has_ended:  # the end is told once, below or by who waits
                console.print(f"{event.state.lower()}: {event.message}", soft_wrap=True)
        if job.state is not JobState.RUNNING or not job.progress.step:
            continue
        is_told = time.monotonic() >= next_line
        if is_told:
            next_line = time.monotonic() + _LINE_EVERY_S
            console.print(_line_of(job, metrics), soft_wrap=True)
    if not is_told and job.progress.step:  # where it ended, also if that was soon after a line
        console.print(_line_of(job, metrics), soft_wrap=True)


def _line_of(job: Job, metrics: _LatestMetrics) -> str:
    metrics.read(job)
    progress = job.progress
    of_total = f"/{progress.total_steps}" if progress.total_steps else ""
    return f"{_describe(job)}  step {progress.step}{of_total}  {metrics.text()}".rstrip()
