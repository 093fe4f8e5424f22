"""Numbers and names in what people are told."""

from __future__ import annotations


def count(number: float, noun: str) -> str:
    """Such as "1 worker" and "2 workers"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def part_of(part: float, whole: float, noun: str) -> str:
    """Such as "0 of 1 CPU" and "1 of 2 CPUs": the noun goes with what there is in all."""
    return f"{part:g} of {count(whole, noun)}"
