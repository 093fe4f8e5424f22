"""Commands on checkpoints: checkpoints, download."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lockstep.client.cli import output
from lockstep.client.cli.connect import client_of, say
from lockstep.client.cli.jobs import JobId
from lockstep.client.errors import FailedPrecondition
from lockstep.client.types import Checkpoint

if TYPE_CHECKING:
    from rich.table import Table


def add_to(app: typer.Typer) -> None:
    for command in (list_checkpoints, download):
        app.command(command.__name__.removeprefix("list_"))(command)


def list_checkpoints(
    context: typer.Context,
    job_id: JobId,
    form: Annotated[
        output.TableOrJson, typer.Option("--output", "-o", help=output.HELP_OF_FORMS)
    ] = output.TableOrJson.table,
) -> None:
    """List the checkpoints of a job, newest first."""
    with client_of(context) as client:
        checkpoints = client.find_job(job_id).checkpoints()
    if form is output.TableOrJson.json:
        output.write_json([_json_form(checkpoint) for checkpoint in checkpoints])
    elif not checkpoints:
        say("no checkpoints")
    else:
        output.console().print(_table_of(checkpoints), soft_wrap=True)


def download(
    context: typer.Context,
    job_id: JobId,
    directory: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where to make the folder step-000000000200 or so. Default: here."
        ),
    ] = ".",
    step: Annotated[int | None, typer.Option(metavar="N", min=0, help="Which checkpoint. Default: the newest.")] = None,
) -> None:
    """Fetch a checkpoint and print its folder.

    All bytes are checked before the folder appears.
    """
    with client_of(context) as client:
        try:
            path = client.find_job(job_id).download(directory, step, progress=True)
        except FileExistsError as error:
            raise FailedPrecondition(
                f"{error.filename} is there already; remove it, or name another folder with -o"
            ) from error
    output.write(str(path))


def _json_form(checkpoint: Checkpoint) -> dict[str, Any]:
    time = checkpoint.create_time.isoformat().replace("+00:00", "Z") if checkpoint.create_time else None
    return {**dataclasses.asdict(checkpoint), "create_time": time}


def _table_of(checkpoints: list[Checkpoint]) -> Table:
    table = output.make_table()
    table.add_column("STEP", justify="right", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("CREATED", no_wrap=True)
    table.add_column("WEIGHTS", no_wrap=True)
    for checkpoint in checkpoints:
        size, created = output.size(checkpoint.size_bytes), output.ago(checkpoint.create_time)
        table.add_row(str(checkpoint.step), size, created, checkpoint.weights_digest[:16])
    return table
