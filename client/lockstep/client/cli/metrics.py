"""The command `metrics`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from lockstep.client.cli import exit_codes, output
from lockstep.client.cli.connect import client_of, say
from lockstep.client.cli.jobs import JobId
from lockstep.client.types import MetricKind, MetricPoint

CSV_COLUMNS = ("name", "step", "epoch", "value")
_TITLE_BY_KIND = {
    MetricKind.RESULT: "Result: the same in every run of this spec",
    MetricKind.TIMING: "Timing: how fast this run was",
    MetricKind.UNSPECIFIED: "Others",
}


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
        Form, typer.Option("--output", "-o", help="csv has the columns name,step,epoch,value.")
    ] = Form.table,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print points as they come, until the job has ended.")
    ] = False,
) -> None:
    """Print the metrics of a job.

    First those of the result, which are the same in every run of its spec, then the timing.
    """
    with client_of(context) as client:
        job = client.find_job(job_id)
        if follow:
            try:
                _write_stream(job.metrics(follow=True), form)
            except KeyboardInterrupt:
                raise typer.Exit(exit_codes.INTERRUPTED) from None
            return
        points = sorted(job.metrics(), key=lambda point: list(_TITLE_BY_KIND).index(point.kind))
    if form is Form.csv:
        output.write(_csv_of(points))
    elif form is Form.json:
        output.write_json([_json_form(point) for point in points])
    elif points:
        _print_tables(points)
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


def _write_stream(points: Iterator[MetricPoint], form: Form) -> None:
    if form is Form.csv:
        output.write(_csv_of(()))
    for point in points:
        if form is Form.csv:
            output.write(_csv_of((point,), with_header=False))
        elif form is Form.json:
            output.write(output.json_of(_json_form(point)))
        else:
            name = output.printable(point.name)
            output.write(f"step {point.step:<8} epoch {point.epoch:<8.2f} {name:<18} {point.value:.6g}")


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


def _print_tables(points: Sequence[MetricPoint]) -> None:
    """One table for each kind: a row for each step, a column for each metric."""
    console = output.console()
    for kind in dict.fromkeys(point.kind for point in points):
        of_kind = [point for point in points if point.kind is kind]
        names = list(dict.fromkeys(point.name for point in of_kind))
        rows: dict[tuple[int, float], dict[str, float]] = {}
        for point in of_kind:
            rows.setdefault((point.step, point.epoch), {})[point.name] = point.value
        table = output.make_table(title=_TITLE_BY_KIND[kind], title_justify="left", title_style="bold")
        for header in ("step", "epoch", *names):
            table.add_column(header.replace("_", "\n"), justify="right", vertical="bottom")
        for (step, epoch), values in sorted(rows.items()):
            cells = (f"{values[name]:.5g}" if name in values else "" for name in names)
            table.add_row(str(step), f"{epoch:.2f}", *cells)
        if kind is not points[0].kind:
            console.print()
        console.print(table)
