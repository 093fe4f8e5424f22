"""The command `logs`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from lockstep.client.cli import exit_codes, output
from lockstep.client.cli.connect import client_of, say
from lockstep.client.cli.jobs import JobId
from lockstep.client.types import LogLine

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_to(app: typer.Typer) -> None:
    app.command("logs")(logs)


def _since(text: str) -> datetime:
    duration = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    try:
        if duration:
            return datetime.now(UTC) - timedelta(**{_UNITS[duration[2]]: float(duration[1])})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        allowed = "a duration, such as 10m, or a time, such as 2026-01-31T12:00"
        raise typer.BadParameter(f"{text!r} is not one; allowed: {allowed}") from error


def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print lines as they come, until the job has ended.")
    ] = False,
    rank: Annotated[int | None, typer.Option(metavar="R", min=0, help="Only lines of this rank.")] = None,
    tail: Annotated[int | None, typer.Option(metavar="N", min=0, help="Begin with the last N lines.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(metavar="T", parser=_since, help="Only lines from then on: 90s, 10m, 2h, 1d ago, or an ISO time."),
    ] = None,
) -> None:
    """Print what the workers of a job printed and logged."""
    is_empty = True
    with client_of(context) as client:
        try:
            for line in client.find_job(job_id).logs(follow, rank, tail, since):
                output.write(_text_of(line))
                is_empty = False
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.INTERRUPTED) from None
    if is_empty and tail != 0:
        say("no such lines" if rank is not None or since is not None else "nothing is logged yet")


def _text_of(line: LogLine) -> str:
    """One line: the time of day here, who it is of, and the text."""
    time = line.time.astimezone().strftime("%H:%M:%S.%f")[:-3] if line.time else "--:--:--.---"
    who = f"worker {line.worker}" if line.rank is None else f"rank {line.rank}"
    text = output.printable(line.text).replace("\n", " ")
    return f"{time} {who} | {'[lockstep] ' if line.is_notice else ''}{text}"
