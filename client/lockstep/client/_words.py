"""Numbers and names in what people are told."""

from __future__ import annotations


def count(number: float, noun: str) -> str:
    """Such as "1 worker", "2 workers" and "1,000 workers"."""
    shown = f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def part_of(part: float, whole: float, noun: str) -> str:
    """Such as "0 of 1 CPU" and "1 of 2 CPUs": the noun goes with what there is in all."""
    return f"{part:g} of {count(whole, noun)}"
