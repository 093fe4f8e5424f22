"""The checks, in the order in which they are run, and how long each may take."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.machines.gpu_check import (
    accounts,
    digests,
    gradients,
    graphs,
    healing,
    operations,
    pausing,
    service,
    telemetry,
    throughput,
)
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row


class Section(NamedTuple):
    """Checks of one area.

    Attributes:
        check: runs them, a row after another.
        budget_s: what they may take; together at most eight minutes.
    """

    check: Callable[[Plan], Iterator[Row]]
    budget_s: float


SECTIONS = {
    "operations": Section(operations.check, 25),
    "gradients": Section(gradients.check, 25),
    "graphs": Section(graphs.check, 45),
    "telemetry": Section(telemetry.check, 15),
    "ledger": Section(accounts.check, 25),
    "healing": Section(healing.check, 60),
    "pausing": Section(pausing.check, 40),
    "service": Section(service.check, 90),
    "throughput": Section(throughput.check, 80),
    "digests": Section(digests.check, 75),
}
"""What is cheap and new comes first; the last one loses only rows when it runs out."""
