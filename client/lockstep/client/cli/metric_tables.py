"""Metrics for people: a row for each step, a column for each metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lockstep.client.cli import output
from lockstep.client.types import MetricKind, MetricPoint

_TITLE_BY_KIND = {
    MetricKind.RESULT: "Result: the same in every run of this spec",
    MetricKind.TIMING: "Timing: how fast this run was",
    MetricKind.UNSPECIFIED: "Others",
}
KINDS = tuple(_TITLE_BY_KIND)
"""In the order in which they are shown."""
_FIRST = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
"""What most people look for stands first; all else follows as it came."""
_STEP_CELLS, _EPOCH_CELLS, _VALUE_CELLS = 7, 7, 8
_MESSAGE_POINTS = 1_000
"""A message with so many points may end within a step; the rest of it is in the next one."""

_Row = dict[str, float]


def print_tables(points: Sequence[MetricPoint], wanted: Sequence[str]) -> None:
    """Print a table for each kind of metric.

    Args:
        points: all of them.
        wanted: names of the columns, in their order; empty for those that there are.
    """
    console = output.console()
    kinds = [kind for kind in KINDS if any(point.kind is kind for point in points)]
    for kind in kinds:
        of_kind = [point for point in points if point.kind is kind]
        there = dict.fromkeys(point.name for point in of_kind)
        named = [name for name in wanted if name in there] or _in_order(there)
        title = _TITLE_BY_KIND[kind] if len(kinds) > 1 else None
        table = output.make_table(title=title, title_justify="left", title_style="bold")
        for header in ("step", "epoch", *named):
            table.add_column(header.replace("_", "\n"), justify="right", vertical="bottom")
        for (step, epoch), row in _rows_of(of_kind):
            table.add_row(str(step), f"{epoch:.2f}", *_cells(row, named))
        if kind is not kinds[0]:
            console.print()
        console.print(table)


def write_rows(batches: Iterable[Sequence[MetricPoint]], wanted: Sequence[str]) -> None:
    """Write rows as their points come; the head is written again when a metric comes for the first time.

    Args:
        batches: the points, those together that came together.
        wanted: names of the columns, in their order; empty for those that there are.
    """
    named = list(wanted)
    if named:
        output.write(_head(named))
    for (step, epoch), row in _whole_rows(batches):
        if new := [name for name in row if name not in named]:
            named = _in_order([*named, *new])
            output.write(_head(named))
        output.write(_line((str(step), f"{epoch:.2f}", *_cells(row, named))))


def _whole_rows(batches: Iterable[Sequence[MetricPoint]]) -> Iterator[tuple[tuple[int, float], _Row]]:
    """The rows, each when all points of its step are there: a step is told of at once."""
    left: list[MetricPoint] = []
    for batch in batches:
        left += batch
        last_step = left[-1].step if len(batch) >= _MESSAGE_POINTS else None
        yield from _rows_of(point for point in left if point.step != last_step)
        left = [point for point in left if point.step == last_step]
    yield from _rows_of(left)


def _rows_of(points: Iterable[MetricPoint]) -> Iterator[tuple[tuple[int, float], _Row]]:
    rows: dict[tuple[int, float], _Row] = {}
    for point in points:
        rows.setdefault((point.step, point.epoch), {})[point.name] = point.value
    yield from sorted(rows.items(), key=lambda item: item[0])


def _in_order(names: Iterable[str]) -> list[str]:
    there = list(names)
    return [name for name in _FIRST if name in there] + [name for name in there if name not in _FIRST]


def _cells(row: _Row, named: Iterable[str]) -> list[str]:
    return [f"{row[name]:.5g}" if name in row else "" for name in named]


def _head(named: Sequence[str]) -> str:
    """The names of the columns, each broken into lines at its underscores, as print_tables does."""
    parts = [output.printable(name).replace("\n", " ").split("_") for name in ("step", "epoch", *named)]
    height = max(map(len, parts))
    stacked = [[""] * (height - len(words)) + words for words in parts]
    return "\n".join(_line([words[row] for words in stacked]) for row in range(height))


def _line(cells: Sequence[str]) -> str:
    widths = (_STEP_CELLS, _EPOCH_CELLS, *([_VALUE_CELLS] * len(cells)))
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()
