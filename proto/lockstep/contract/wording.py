"""Numbers and names in what people are told."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: float, noun: str) -> str:
    """Such as "1 worker", "2 workers" and "1,000 workers"."""
    shown = f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def were(number: float, noun: str) -> str:
    """Such as "1 line was" and "2 lines were"."""
    return f"{count(number, noun)} {'was' if number == 1 else 'were'}"


def part_of(part: float, whole: float, noun: str) -> str:
    """Such as "0 of 1 CPU" and "1 of 2 CPUs": the noun goes with what there is in all."""
    return f"{part:g} of {count(whole, noun)}"


def go_on(workers: int) -> str:
    """Such as "1 worker goes on" and "2 workers go on"."""
    return f"{count(workers, 'worker')} {'goes' if workers == 1 else 'go'} on"


def listed(items: Sequence[object]) -> str:
    """Such as "1", "1 and 2", and "1, 2 and 3"."""
    *front, last = map(str, items)
    return f"{', '.join(front)} and {last}" if front else last
