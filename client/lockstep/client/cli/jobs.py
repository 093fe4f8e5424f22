"""Commands on jobs: submit, ls, get, describe, watch, wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lockstep.client.cli import exit_codes, output
from lockstep.client.cli.connect import client_of, complete_job, say, say_if_shards_follow, say_if_short
from lockstep.client.errors import Unimplemented
from lockstep.client.job import Job
from lockstep.client.spec import load_right_spec, message_to_dict
from lockstep.client.types import JobState

if TYPE_CHECKING:
    from rich.table import Table

JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of the job, its beginning, or a name that one job has.", autocompletion=complete_job
    ),
]
SpecFile = Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="YAML or JSON file; - is standard input.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a field over the file's: --set training.seed=7; may be repeated. Another kind, as in "
        "--set model.lenet={}, takes the place of the file's.",
    ),
]
_SHOWN_IN_A_TABLE = 50
_STATES = [state.lower() for state in JobState if state is not JobState.UNSPECIFIED]


def _state(text: str) -> JobState:
    if text.lower() not in _STATES:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(_STATES)}")
    return JobState(text.upper())


States = Annotated[
    list[JobState] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        parser=_state,
        autocompletion=lambda incomplete: [state for state in _STATES if state.startswith(incomplete)],
        help=f"Only jobs in this state: {', '.join(_STATES)}; may be repeated.",
    ),
]


def add_to(app: typer.Typer) -> None:
    for command in (submit, ls, get, describe_job, watch, wait):
        app.command(command.__name__.removesuffix("_job"))(command)


def submit(
    context: typer.Context,
    file: SpecFile,
    overrides: Overrides = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Makes a repeated call safe: the same id with the same spec is the same job. At most 128 characters.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Have the server check it, and print it with every default filled in.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job has ended.")] = False,
) -> None:
    """Submit a job and print its id."""
    spec = load_right_spec(file, overrides or ())
    with client_of(context) as client:
        job = client.submit_job(spec, request_id=request_id, validate_only=dry_run)
        if dry_run:
            output.write_yaml(message_to_dict(job.spec))
            say(job.state_reason)
            say_if_shards_follow(spec, job.spec)
            say_if_short(client, job)
            return
        output.write(job.job_id)
        if not follow:
            say(f"{job.name} is {job.state.lower()}; see how it gets on with: lockstep wait {job.job_id}")
        say_if_shards_follow(spec, job.spec)
        if not job.state.has_ended:
            say_if_short(client, job)
        if follow:
            _await_end(job)


def ls(
    context: typer.Context,
    form: Annotated[
        output.TableOrJson, typer.Option("--output", "-o", help=output.HELP_OF_FORMS)
    ] = output.TableOrJson.table,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="LABEL=VALUE", help="Only jobs with this label; may be repeated."),
    ] = None,
    state: States = None,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs that this owner submitted.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            metavar="N",
            min=1,
            help=f"At most the N newest. [default: {_SHOWN_IN_A_TABLE}, and all with -o json]",
        ),
    ] = None,
    all_of_them: Annotated[bool, typer.Option("--all", "-a", help="All, however many there are.")] = False,
) -> None:
    """List jobs, newest first; with their owners, if those listed have more than one."""
    if all_of_them and limit is not None:
        raise typer.BadParameter("cannot be given together with --all", param_hint="--limit")
    labels = dict(_label(text) for text in label or ())
    if limit is None and not all_of_them and form is output.TableOrJson.table:
        limit = _SHOWN_IN_A_TABLE
    with client_of(context) as client:
        jobs, total = client._list_jobs(state, labels, limit, owner)
    if form is output.TableOrJson.json:
        output.write_json([message_to_dict(job.proto) for job in jobs])
    elif not jobs:
        say("no jobs" if not (labels or state or owner) else "no such jobs")
    else:
        output.console().print(_table_of(jobs))
    if total > len(jobs):
        say(f"and {total - len(jobs):,} more, which are older; see them with --all or --limit N")


def get(
    context: typer.Context,
    job_id: JobId,
    form: Annotated[
        output.JsonOrYaml, typer.Option("--output", "-o", help="Both hold the same.")
    ] = output.JsonOrYaml.json,
) -> None:
    """Print all that is known of a job, for programs."""
    with client_of(context) as client:
        data = message_to_dict(client.find_job(job_id).proto)
    if form is output.JsonOrYaml.json:
        output.write_json(data)
    else:
        output.write_yaml(data)


def describe_job(context: typer.Context, job_id: JobId) -> None:
    """Tell a person about a job.

    Its state, progress and newest checkpoint, result or error, where its time went, what happened, and its spec.
    """
    from lockstep.client.cli import describe

    with client_of(context) as client:
        job = client.find_job(job_id)
        try:
            ledger = job.ledger()
        except Unimplemented:  # an older server
            ledger = None
        newest = next(iter(job.checkpoints()), None)
        describe.print_job(job, job.events(), newest, ledger)


def watch(context: typer.Context, job_id: JobId) -> None:
    """Print what happens to a job until it has ended.

    A line for each event, the past ones first; the exit code tells how the job ended.
    """
    with client_of(context) as client:
        job = client.find_job(job_id)
        try:
            for update in job.watch():
                for event in update.events:
                    output.write(output.event_line(event, update.job.error))
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.INTERRUPTED) from None
    if job.state is not JobState.SUCCEEDED:  # the last line has said why
        if job.error is not None and job.error.traceback:
            say(f"see where with: lockstep describe {job.job_id}")
        raise typer.Exit(exit_codes.FAILED)


def wait(
    context: typer.Context,
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Give up after this long.")] = None,
) -> None:
    """Wait until a job has ended, and show how it gets on; the exit code tells how it ended.

    A bar on a terminal, a line now and then elsewhere. A job that is paused has not ended: this waits until it was
    resumed and is done.
    """
    with client_of(context) as client:
        _await_end(client.find_job(job_id), timeout)


def _await_end(job: Job, timeout_s: float | None = None) -> None:
    try:
        job.wait(timeout_s, progress=True)
    except KeyboardInterrupt:
        say(
            f"\n{job.job_id} goes on; see its progress again with: lockstep wait {job.job_id}, "
            f"stop it with: lockstep cancel {job.job_id}"
        )
        raise typer.Exit(exit_codes.INTERRUPTED) from None
    assert job.result is not None
    say(f"weights {job.result.weights_digest}")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{text!r} must have the form label=value", param_hint="-l")
    return key, value


def _table_of(jobs: list[Job]) -> Table:
    table = output.make_table()
    table.add_column("JOB", no_wrap=True, min_width=max(len(job.job_id) for job in jobs))
    table.add_column("NAME", overflow="ellipsis")  # the only one that may give way
    if has_owners := len({job.owner for job in jobs}) > 1:
        table.add_column("OWNER", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("DONE", no_wrap=True, justify="right")
    table.add_column("WORKERS", no_wrap=True, justify="right")
    if some_healed := any(job.heals for job in jobs):
        table.add_column("HEALS", no_wrap=True, justify="right")
    table.add_column("CREATED", no_wrap=True)
    for job in jobs:
        workers = output.workers_text(job)
        heals = [str(job.heals or "")] if some_healed else []
        owner = [job.owner] if has_owners else []
        state, done = output.state_text(job.state), output.progress_text(job)
        table.add_row(job.job_id, job.name, *owner, state, done, workers, *heals, output.ago(job.create_time))
    return table
