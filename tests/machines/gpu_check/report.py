"""What a check has seen, as a row of the table."""

import json
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

WIDTHS = (50, 34, 34, 7)
DETAIL_WIDTH = 118
LONGEST_WORDS, LINES_SHOWN = 150, 30


class Verdict(StrEnum):
    """What is thought of it."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_RUN = "not run"
    LATE = "late"
    """The time of its section was over before: it is slow, or hangs."""
    FIGURE = "figure"
    """Nothing is wanted of it."""


@dataclass
class Row:
    """One check.

    Attributes:
        check: what was looked at.
        seen: what was seen, in some words.
        wanted: what should have been.
        verdict: whether that is so.
        details: lines that are printed below it when it has failed or is late: what differs, or where it was.
        figures: for programs.
    """

    check: str
    seen: str
    wanted: str = ""
    verdict: Verdict = Verdict.FIGURE
    details: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Row":
        values = json.loads(text)
        return cls(**values | {"verdict": Verdict(values["verdict"])})

    def lines(self) -> list[str]:
        """The row as it is printed."""
        cells = (self.check, self.seen, self.wanted, self.verdict.value)
        columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, WIDTHS, strict=True)]
        height = max(map(len, columns))
        lines = []
        for line in range(height):
            parts = [column[line] if line < len(column) else "" for column in columns]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True)).rstrip())
        for detail in self.details if self.verdict in (Verdict.FAILED, Verdict.LATE) else []:
            lines += textwrap.wrap(detail, DETAIL_WIDTH, initial_indent="    ", subsequent_indent="      ") or [""]
        return lines


def judge(check: str, holds: bool, seen: str, wanted: str, details: Iterable[str] = (), **figures: Any) -> Row:
    """A row that is right or wrong."""
    return Row(check, seen, wanted, Verdict.OK if holds else Verdict.FAILED, list(details), figures)


def attempt(check: str, look: Callable[[], Row]) -> Row:
    """The row of a check; one that raises has failed, and those after it are still looked at."""
    try:
        return look()
    except Exception as error:
        words = f"{type(error).__name__}: {error}"[:LONGEST_WORDS]
        return judge(check, False, words, "", traceback.format_exc().splitlines()[-LINES_SHOWN:])


def not_run(check: str, why: str, wanted: str = "") -> Row:
    """A row of what cannot be looked at here."""
    return Row(check, why, wanted, Verdict.NOT_RUN)


def the_same(check: str, values: Mapping[str, str], expected: int | None = None) -> Row:
    """A row that wants all values, by what gave them, to be the same one; else it says who saw which.

    Args:
        check: what was looked at.
        values: digests and the like.
        expected: how many there should be.
    """
    groups: dict[str, list[str]] = {}
    for label, value in values.items():
        groups.setdefault(value, []).append(label)
    wanted = f"one digest, {expected or len(values)} times"
    seen = (
        f"{next(iter(groups), 'nothing')[:12]}, {len(values)} times" if len(groups) == 1 else f"{len(groups)} digests"
    )
    holds = len(groups) == 1 and len(values) == (expected or len(values))
    details = [f"{value[:24]}: {'; '.join(labels)}" for value, labels in groups.items()]
    return judge(check, holds, seen, wanted, details, digests={k: v[:16] for k, v in values.items()})
