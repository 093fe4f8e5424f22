"""A job, told to a person."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.text import Text

from lockstep.client import _yaml
from lockstep.client.cli import output
from lockstep.client.cli.ledger import idle_ranks_line, straggler_line, table_of
from lockstep.client.job import Job
from lockstep.client.ledger import Ledger
from lockstep.client.progress import describe_epoch, describe_workers
from lockstep.client.spec import message_to_dict
from lockstep.client.types import Checkpoint, Failure, JobEvent, JobState, Result


def print_job(job: Job, events: Sequence[JobEvent], newest: Checkpoint | None, ledger: Ledger | None) -> None:
    """Print everything about a job that a person may ask.

    Args:
        job: as it is now.
        events: all that has happened to it.
        newest: its newest checkpoint, if there is one.
        ledger: where the time of its workers went, if the server tells.
    """
    console = output.console()
    _print_facts(console, [(name, value) for name, value in _facts(job, newest, events) if value], "bold")
    if job.result is not None:
        _print_result(console, job.result)
    if job.error is not None:
        _print_failure(console, job.error)
    if ledger is not None and ledger.ranks:
        _heading(console, "Time")
        console.print(table_of(ledger))
        for remark in filter(None, (straggler_line(ledger), idle_ranks_line(ledger))):
            console.print(remark, soft_wrap=True)
    _heading(console, "Events")
    for event in events:
        console.print(output.event_line(event), soft_wrap=True)
    _heading(console, "Spec")
    console.print(_yaml.dump(message_to_dict(job.spec)).rstrip("\n"), soft_wrap=True)


def _facts(job: Job, newest: Checkpoint | None, events: Sequence[JobEvent]) -> list[tuple[str, str | Text]]:
    progress = job.progress
    steps = f"step {progress.step} of {progress.total_steps}" if progress.total_steps else f"step {progress.step}"
    first = _first_start(job, events)
    took = output.between(first, job.end_time)
    of_attempt = f" of attempt {job.attempt}" if job.attempt > 1 else ""
    return [
        ("job", job.job_id),
        ("name", job.name),
        ("owner", job.owner),
        ("state", output.state_text(job.state)),
        ("why", "" if job.state in _STATES_THAT_SAY_ALL or job.error is not None else job.state_reason),
        ("created", output.ago(job.create_time)),
        ("started", output.ago(first)),
        ("ended", output.ago(job.end_time)),
        ("took", f"{took}, over {job.attempt} attempts" if took and of_attempt else took),
        ("progress", f"{describe_epoch(job)}, {steps}" if progress.step else ""),
        (f"startup{of_attempt}", _describe_startup(job)),
        ("workers", describe_workers(job)),
        ("attempt", str(job.attempt or "")),
        ("restarts", str(job.restarts or "")),
        ("heals", str(job.heals or "")),
        ("checkpoint", _describe_checkpoint(newest) if newest else ""),
        ("hardware", job.hardware_class),
        ("engine", job.engine_version),
        ("curve", job.curve_digest),
    ]


_STATES_THAT_SAY_ALL = (JobState.RUNNING, JobState.SUCCEEDED)
_LEGS = {"data_ready": "data ready", "first_step": "first step", "first_point": "first point stored"}


def _first_start(job: Job, events: Sequence[JobEvent]) -> datetime | None:
    """When the job first trained, in whichever attempt."""
    times = [event.time for event in events if event.state is JobState.RUNNING and event.time is not None]
    return min([*times, *([job.start_time] if job.start_time is not None else [])], default=None)


def _describe_startup(job: Job) -> str:
    """The way to the first step, leg by leg; a leg that waits for resources may take days.

    Later attempts are told from where they were admitted: before that the job trained.
    """
    legs = job.timeline.legs()
    if job.attempt > 1:
        legs = [leg for leg in legs if leg[0] != "admitted"]
    told = [f"{_LEGS.get(name, name)} {output.short_time(seconds)}" for name, seconds in legs]
    return f"{'admitted' if job.attempt > 1 else 'submitted'}, {', '.join(told)}" if told else ""


def _describe_checkpoint(checkpoint: Checkpoint) -> str:
    facts = (f"step {checkpoint.step}", output.size(checkpoint.size_bytes), output.ago(checkpoint.create_time))
    return f"{', '.join(fact for fact in facts if fact)}: {checkpoint.uri}"


def _print_result(console: Console, result: Result) -> None:
    _heading(console, "Result")
    facts: list[tuple[str, str | Text]] = [(name, f"{value:.6g}") for name, value in result.final_metrics.items()]
    _print_facts(console, [*facts, ("weights", result.weights_digest)])


def _print_facts(console: Console, facts: Sequence[tuple[str, str | Text]], style: str = "") -> None:
    """Print a line for each; the terminal breaks a long one, so that a path can be copied as it is."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        console.print(Text.assemble((f"{name:<{width}}", style), "  ", value), soft_wrap=True)


def _print_failure(console: Console, error: Failure) -> None:
    _heading(console, "Error")
    where = f" (rank {error.rank})" if error.rank is not None else ""
    console.print(f"{error.reason}{where}: {error!s}", soft_wrap=True)
    if error.traceback:
        console.print(error.traceback.rstrip("\n"), soft_wrap=True)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))
