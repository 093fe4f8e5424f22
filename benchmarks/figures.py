"""How a benchmark shows what it has measured."""

import statistics
from collections.abc import Sequence


def show(name: str, what: str, seconds: Sequence[float]) -> float:
    """Print a line about times; returns the median."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    median = statistics.median(ordered)
    print(f"{name:12} {len(ordered):4} {what}  p50 {median:7.3f} s  p99 {p99:7.3f} s  worst {ordered[-1]:7.3f} s")
    return median
