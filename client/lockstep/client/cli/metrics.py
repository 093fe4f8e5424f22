"""The command `metrics`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from lockstep.client.cli import exit_codes, output
from lockstep.client.cli.connect import client_of, say
from lockstep.client.cli.jobs import JobId
from lockstep.client.cli.metric_tables import KINDS, print_tables, write_rows
from lockstep.client.types import MetricKind, MetricPoint

CSV_COLUMNS = ("name", "step", "epoch", "value")


class Form(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


def add_to(app: typer.Typer) -> None:
    app.command("metrics")(metrics)


def metrics(
    context: typer.Context,
    job_id: JobId,
    form: Annotated[
        Form, typer.Option("--output", "-o", help="csv has the columns name,step,epoch,value; json and csv hold all.")
    ] = Form.table,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="METRIC", help="Only this one, such as val_loss; may be repeated."),
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing", help="In the table also how fast this run was: samples per second and the like.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print points as they come, until the job has ended.")
    ] = False,
) -> None:
    """Print the metrics of a job.

    As a table: a row for each step, and a column for each metric of the result, which are the same in every run of the
    job's spec.
    """
    wanted = list(dict.fromkeys(names or ()))
    has_timing = form is not Form.table or timing or bool(wanted)

    def shown(points: Iterable[MetricPoint]) -> list[MetricPoint]:
        return [point for point in points if has_timing or point.kind is not MetricKind.TIMING]

    with client_of(context) as client:
        job = client.find_job(job_id)
        if follow:
            try:
                _write_stream(map(shown, job._follow_metrics(wanted)), form, wanted)
            except KeyboardInterrupt:
                raise typer.Exit(exit_codes.INTERRUPTED) from None
            return
        points = shown(sorted(job.metrics(wanted), key=lambda point: KINDS.index(point.kind)))
    if form is Form.csv:
        output.write(_csv_of(points))
    elif form is Form.json:
        output.write_json([_json_form(point) for point in points])
    elif points:
        print_tables(points, wanted)
    else:
        say("no metrics yet")


def _csv_of(points: Iterable[MetricPoint], *, with_header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if with_header:
        writer.writerow(CSV_COLUMNS)
    # repr of a float is the shortest text that reads back as the same bits.
    writer.writerows((point.name, point.step, repr(point.epoch), repr(point.value)) for point in points)
    return text.getvalue()


def _write_stream(batches: Iterable[list[MetricPoint]], form: Form, wanted: Sequence[str]) -> None:
    if form is Form.table:
        write_rows(batches, wanted)
        return
    if form is Form.csv:
        output.write(_csv_of(()))
    for points in batches:
        if form is Form.csv:
            output.write(_csv_of(points, with_header=False))
        else:
            output.write("\n".join(output.json_of(_json_form(point)) for point in points))


def _json_form(point: MetricPoint) -> dict[str, Any]:
    return {
        "name": point.name,
        "step": point.step,
        "epoch": _json_number(point.epoch),
        "value": _json_number(point.value),
        "kind": point.kind.value,
    }


def _json_number(value: float) -> float | str:
    """JSON has no such numbers; the JSON form of protobuf writes them as text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
