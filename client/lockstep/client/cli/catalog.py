"""The commands `models`, `datasets` and `optimizers`: what a spec may say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from lockstep.client.cli import output
from lockstep.client.cli.connect import client_of
from lockstep.client.types import CatalogEntry, CatalogParameter

Form = Annotated[output.TableOrJson, typer.Option("--output", "-o", help=output.HELP_OF_FORMS)]


def add_to(app: typer.Typer) -> None:
    for command in (models, datasets, optimizers):
        app.command()(command)


def models(context: typer.Context, form: Form = output.TableOrJson.table) -> None:
    """List the models that a spec can name."""
    with client_of(context) as client:
        _print(client.list_models(), form, "model")


def datasets(context: typer.Context, form: Form = output.TableOrJson.table) -> None:
    """List the kinds of data that a spec can name."""
    with client_of(context) as client:
        _print(client.list_datasets(), form, "data")


def optimizers(context: typer.Context, form: Form = output.TableOrJson.table) -> None:
    """List the optimizers that a spec can name."""
    with client_of(context) as client:
        _print(client.list_optimizers(), form, "optimizer")


def _print(entries: Sequence[CatalogEntry], form: output.TableOrJson, key: str) -> None:
    if form is output.TableOrJson.json:
        output.write_json([dataclasses.asdict(entry) for entry in entries])
        return
    from rich.padding import Padding

    console = output.console()
    for entry in entries:
        tasks = f" ({', '.join(entry.tasks)})" if entry.tasks else ""
        console.print(f"{key}.{entry.name}{tasks}", style="bold")
        console.print(Padding(entry.description, (0, 0, 0, 2), expand=False))
        if entry.parameters:
            table = output.make_table(show_header=False)
            table.add_column(no_wrap=True)
            table.add_column()
            for parameter in entry.parameters:
                table.add_row(parameter.name, _describe(parameter))
            console.print(Padding(table, (0, 0, 0, 4), expand=False))


def _describe(parameter: CatalogParameter) -> str:
    if parameter.required:
        default = "required"
    else:
        default = f"default {json.dumps(parameter.default)}" if parameter.default is not None else ""
    return "; ".join(part for part in (parameter.type, parameter.limits.rstrip("."), default) if part)
