"""A job's ledger, told to a person."""

from __future__ import annotations

import statistics

from rich.table import Table
from rich.text import Text

from lockstep.client.cli import output
from lockstep.client.ledger import Ledger, RankLedger

_BAR_CELLS = 20
_RANKS_SHOWN = 8
_LABELS = {"healing": "healing/resizing"}
"""What people are shown for a phase whose name says less than it holds."""


def table_of(ledger: Ledger) -> Table:
    """A row for each phase that took any time: its share with a bar, and its time on each rank, or on all of them.

    Phases are called here as in the SDK, in Prometheus and on the boards, so that what is read can be looked for there.
    """
    table = output.make_table()
    table.add_column("phase", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    columns = _columns(ledger)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    seconds = ledger.seconds
    total = sum(seconds.values()) or 1.0
    for phase, spent in seconds.items():
        if spent > 0:
            share = spent / total
            cells = [_time(_value(ranks, phase)) for _, ranks in columns]
            table.add_row(_LABELS.get(phase, phase), f"{share:.1%}", _bar(share), *cells)
    whole = [_time(statistics.mean(sum(rank.seconds.values()) for rank in ranks)) for _, ranks in columns]
    table.add_row("in all", "", "", *whole, style="bold")
    return table


def straggler_line(ledger: Ledger) -> str:
    """Who holds the others up; empty when nobody does."""
    if ledger.straggler is None:
        return ""
    node = next((rank.node for rank in ledger.ranks if rank.rank == ledger.straggler), "")
    where = f" on {node}" if node else ""
    lag = f"{ledger.straggler_lag_ratio:.0%}"
    return f"rank {ledger.straggler}{where} is the straggler: the others wait for it for {lag} of their steps"


def idle_ranks_line(ledger: Ledger) -> str:
    """Whose column is no measure of training, since they have left before their first step; empty for nobody."""
    trained = any(rank.steps for rank in ledger.ranks)
    without = [f"rank {rank.rank}" for rank in ledger.ranks if trained and not rank.steps]
    if not without or len(ledger.ranks) > _RANKS_SHOWN:
        return ""
    return f"{', '.join(without)} took no step: what is shown of it is no training"


def _columns(ledger: Ledger) -> list[tuple[str, list[RankLedger]]]:
    if len(ledger.ranks) <= _RANKS_SHOWN:
        return [(f"rank {rank.rank}", [rank]) for rank in ledger.ranks]
    return [("mean rank", list(ledger.ranks))]


def _value(ranks: list[RankLedger], phase: str) -> float:
    return statistics.mean(rank.seconds[phase] for rank in ranks)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 100 else output.duration(seconds)


def _bar(share: float) -> Text:
    cells = round(share * _BAR_CELLS * 8)
    parts = "█" * (cells // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[cells % 8]
    return Text(parts or "▏", style="cyan")
