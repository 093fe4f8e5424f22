"""How things look on standard output."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockstep.client._printable import printable as printable
from lockstep.client._printable import write as write
from lockstep.client.job import Job
from lockstep.client.types import Failure, JobEvent, JobState

if TYPE_CHECKING:  # rich is imported where something is drawn, so that `lockstep --help` answers at once
    from rich.table import Table
    from rich.text import Text

    from lockstep.client._console import SafeConsole

_STYLE_BY_STATE = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.CANCELLING: "yellow",
    JobState.PAUSING: "blue",
    JobState.PAUSED: "blue",
    JobState.RUNNING: "cyan",
}


HELP_OF_FORMS = "table for people, json for programs."


class TableOrJson(StrEnum):
    table = "table"
    json = "json"


class JsonOrYaml(StrEnum):
    json = "json"
    yaml = "yaml"


def console() -> SafeConsole:
    """Standard output, for tables and what has colours."""
    from lockstep.client._console import SafeConsole

    return SafeConsole()


def write_json(data: object) -> None:
    """Write JSON; a character that a terminal would obey is escaped, which changes nothing for a program."""
    write(json_of(data, indent=2))


def json_of(data: object, indent: int | None = None) -> str:
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def write_yaml(data: object) -> None:
    from lockstep.client import _yaml

    write(_yaml.dump(data))


def state_text(state: JobState) -> Text:
    from rich.text import Text

    return Text(state.value, style=_STYLE_BY_STATE.get(state, ""))


def make_table(**options: Any) -> Table:
    """A table without lines, for 80 columns."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", **options)


def ago(moment: datetime | None) -> str:
    """A time as people say it, such as "3 s ago"."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def between(start: datetime | None, end: datetime | None) -> str:
    """How long something took, by the server's clock; empty while that is not known."""
    if start is None or end is None:
        return ""
    return duration((end - start).total_seconds()) if end >= start else "not known: the server's clock was set back"


def duration(seconds: float) -> str:
    """A length of time in its largest unit that is not yet coarse, such as "90 min"."""
    for unit, length_s, below_s in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < below_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def short_time(seconds: float) -> str:
    """A length of time that is mostly far below a second, such as "12 ms", "3.8 s" and "11 s"."""
    if 0 < seconds < 1e-3:
        return "under 1 ms"
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def size(size_bytes: int) -> str:
    """A number of bytes as people say it, such as "4.2 MiB"."""
    from lockstep.client.progress import describe_size

    return describe_size(size_bytes)


def progress_text(job: Job) -> str:
    """How far a job is, such as "45 %"."""
    progress = job.progress
    if progress.total_steps:
        return f"{100 * progress.step // progress.total_steps} %"
    return f"step {progress.step}" if progress.step else ""


def workers_text(job: Job) -> str:
    """How many workers run of those that a job wants, such as "2/3"; empty where it is to have none.

    A server that has just started does not know yet how many of a running job there are, which is "?/3".
    """
    wanted = job.spec.resources.workers
    if not wanted or job.state.has_ended or job.state is JobState.PAUSED:
        return ""
    unknown = "?" if job.state is JobState.RUNNING else "0"
    return f"{job.running_workers or unknown}/{wanted}"


def clock(moment: datetime | None) -> str:
    """A time of day, here; with the date when that is another one."""
    if moment is None:
        return ""
    local = moment.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now(UTC).astimezone().date() else "%Y-%m-%d %H:%M:%S")


def event_line(event: JobEvent, error: Failure | None = None) -> str:
    """One event in one line.

    Args:
        event: what happened.
        error: what the job has failed of, if it has: its end says the reason alone.
    """
    attempt = f"attempt {event.attempt}" if event.attempt else ""
    message = " ".join(event.message.split())
    if error is not None and event.state is JobState.FAILED and message == error.reason and error.message.strip():
        message += f": {str(error).strip().splitlines()[0]}"
    return f"{clock(event.time)}  {event.state:<10}  {attempt:<10}  {printable(message)}".rstrip()
