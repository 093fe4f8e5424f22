"""Commands that change a job: cancel, pause, resume, scale."""

from __future__ import annotations

from typing import Annotated

import typer

from lockstep.client.cli import exit_codes
from lockstep.client.cli.connect import client_of, say, say_if_short
from lockstep.client.cli.jobs import JobId
from lockstep.client.errors import FailedPrecondition
from lockstep.client.job import Job
from lockstep.client.types import JobState
from lockstep.contract.wording import count


def add_to(app: typer.Typer) -> None:
    for command in (cancel, pause, resume, scale):
        app.command()(command)


def cancel(context: typer.Context, job_id: JobId) -> None:
    """Ask a job to stop."""
    with client_of(context) as client:
        job = client.find_job(job_id).cancel()
    _say_state(job)


def pause(
    context: typer.Context,
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job is paused.")] = True,
) -> None:
    """Have a job write a checkpoint and free its resources.

    `lockstep resume` goes on exactly there.
    """
    with client_of(context) as client:
        job = client.find_job(job_id).pause()
        if wait and job.state is JobState.PAUSING:
            try:
                _await_pause(job)
            except KeyboardInterrupt:
                say(f"\n{job.job_id} goes on pausing")
                raise typer.Exit(exit_codes.INTERRUPTED) from None
    _say_state(job)


def resume(context: typer.Context, job_id: JobId) -> None:
    """Have a paused job go on exactly where it was.

    It is put back into the queue, at its old place.
    """
    with client_of(context) as client:
        job = client.find_job(job_id).resume()
    _say_state(job)


def scale(
    context: typer.Context,
    job_id: JobId,
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="How many to run with: from resources.min_workers to resources.shards."),
    ],
) -> None:
    """Change how many workers a job runs with.

    From its next step on; its curve stays as it is.
    """
    with client_of(context) as client:
        job = client.find_job(job_id).scale(workers)
        wanted = job.spec.resources.workers
        say(f"{job.job_id} is {job.state.lower()}, with {count(wanted, 'worker')} wanted")
        say_if_short(client, job)


def _await_pause(job: Job) -> None:
    is_told = False
    for _ in job.watch():
        if job.state is JobState.PAUSED:
            return
        if job.state is not JobState.PAUSING:
            break
        if not is_told:
            say(f"{job.job_id} is pausing")
            is_told = True
    how = "ended" if job.state.has_ended else "went on"
    why = f", {job.state_reason}" if job.state_reason else ""
    raise FailedPrecondition(f"{job.job_id} {how} before it was seen paused: it is {job.state}{why}")


def _say_state(job: Job) -> None:
    say(f"{job.job_id} is {job.state.lower()}")
