"""The accounts of workers, put together by rank."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from lockstep.contract.facts import PHASES, STEP_BOUNDS_S
from lockstep.server.ledger.ledger import JobLedger, RankAccount
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest
from lockstep.v1.ledger_pb2 import PhaseSeconds

NOW = 1000.0


def account(
    rank: int, sequence: int, *, attempt: int = 1, number: int | None = None, **fields: Any
) -> ReportLedgerRequest:
    """What a worker tells; seconds of phases are given by their names."""
    seconds = PhaseSeconds(**{f"{phase}_s": fields.pop(phase) for phase in PHASES if phase in fields})
    counts = [0] * len(STEP_BOUNDS_S) + [fields.get("steps", 0)]
    return ReportLedgerRequest(
        job_id="job-1",
        attempt=attempt,
        number=rank if number is None else number,
        rank=rank,
        node_id=f"node-{rank}",
        sequence=sequence,
        seconds=seconds,
        step_duration_counts=counts,
        **fields,
    )


def seconds_of(ledger: JobLedger, rank: int) -> dict[str, float]:
    pairs = zip(PHASES, ledger.ranks[rank].seconds, strict=True)
    return {phase: value for phase, value in pairs if value}


def shown(ledger: JobLedger, rank: int) -> dict[str, float]:
    return {phase: value for phase, value in zip(PHASES, ledger.seconds_of(rank), strict=True) if value}


def test_a_later_account_of_a_worker_replaces_the_one_before() -> None:
    ledger = JobLedger()
    for sequence, forward in ((1, 1.0), (2, 5.0), (3, 6.5)):
        assert ledger.add(account(0, sequence, forward=forward, steps=10 * sequence), NOW)
    assert seconds_of(ledger, 0) == {"forward": 6.5}
    assert (ledger.ranks[0].steps, ledger.ranks[0].step_counts[-1]) == (30, 30)


def test_an_account_that_comes_late_or_twice_changes_nothing() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 2, forward=5.0), NOW)
    for sequence, forward in ((1, 1.0), (2, 5.0)):
        assert not ledger.add(account(0, sequence, forward=forward), NOW)
    assert seconds_of(ledger, 0) == {"forward": 5.0}


def test_a_worker_that_gets_another_rank_goes_on_in_the_account_of_that_one() -> None:
    ledger = JobLedger()
    ledger.add(account(1, 1, number=7, forward=5.0), NOW)
    ledger.add(account(0, 2, number=7, forward=6.0, healing=1.0), NOW)
    assert seconds_of(ledger, 1) == {"forward": 5.0}
    assert seconds_of(ledger, 0) == {"forward": 1.0, "healing": 1.0}
    assert (ledger.ranks[0].is_there, ledger.ranks[1].is_there) == (True, False)


def test_a_new_attempt_adds_to_the_accounts_of_those_before() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 4, forward=5.0), NOW)
    ledger.add(account(0, 1, attempt=2, forward=1.0), NOW)
    ledger.add(account(0, 5, attempt=1, forward=5.5), NOW)  # the last words of a worker before
    assert seconds_of(ledger, 0) == {"forward": 6.5}
    ledger.add(account(0, 1, attempt=3, forward=1.0), NOW)
    assert not ledger.add(account(0, 6, attempt=1, forward=9.0), NOW)
    assert seconds_of(ledger, 0) == {"forward": 7.5}


def test_time_that_is_under_way_is_shown_and_counted_once_it_is_settled() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, forward=5.0, exchange=30.0, under_way=PhaseSeconds(exchange_s=30.0)), NOW)
    assert shown(ledger, 0) == {"forward": 5.0, "exchange": 30.0}
    assert seconds_of(ledger, 0) == {"forward": 5.0}
    ledger.add(account(0, 2, forward=5.0, exchange=1.0, exchange_wait=31.0), NOW)
    assert shown(ledger, 0) == seconds_of(ledger, 0) == {"forward": 5.0, "exchange": 1.0, "exchange_wait": 31.0}
    assert ledger.by_cause()["productive"] == 37.0


def test_what_is_under_way_goes_with_the_worker_when_it_moves_up() -> None:
    ledger = JobLedger()
    waiting = PhaseSeconds(exchange_wait_s=25.0)
    ledger.add(account(2, 1, forward=5.0, exchange_wait=26.0, under_way=waiting), NOW)
    ledger.add(account(0, 2, number=2, forward=5.0, exchange_wait=1.0, healing=30.0), NOW)
    assert shown(ledger, 2) == {"forward": 5.0, "exchange_wait": 1.0}
    assert shown(ledger, 0) == {"healing": 30.0}


def test_what_is_under_way_at_the_end_is_settled() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, idle=3.0, under_way=PhaseSeconds(idle_s=3.0), is_last=True), NOW)
    assert seconds_of(ledger, 0) == {"idle": 3.0}


def test_an_account_that_moves_settled_time_gives_no_phase_more_than_has_passed() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, forward=5.0, exchange=30.0), NOW)  # a worker of an earlier version: under way
    ledger.add(account(0, 2, forward=5.0, healing=32.0), NOW)
    assert seconds_of(ledger, 0) == {"forward": 5.0, "exchange": 30.0, "healing": 2.0}
    ledger.add(account(0, 3, forward=5.0, healing=20.0), NOW)
    assert seconds_of(ledger, 0) == {"forward": 5.0, "exchange": 30.0, "healing": 2.0}


def test_an_account_that_an_earlier_version_has_stored_holds_nothing_below_zero() -> None:
    said = JobLedger(ranks={0: RankAccount()}).to_json()
    said["ranks"]["0"] |= {"seconds": [-24.87, 5.0, *[0.0] * 10], "most_seconds": [0.0, 6.0, *[0.0] * 10]}
    assert seconds_of(JobLedger.from_json(said), 0) == {"data": 5.0}


def test_the_last_words_of_a_worker_do_not_hide_the_one_in_its_place() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, number=0, forward=5.0, memory_bytes=1), NOW)
    ledger.add(account(0, 1, number=3, forward=1.0, memory_bytes=3), NOW)
    ledger.add(account(0, 2, number=0, forward=5.5, memory_bytes=1, is_last=True), NOW)
    known = ledger.ranks[0]
    assert (known.number, known.memory_bytes, known.is_there) == (3, 3, True)
    assert seconds_of(ledger, 0) == {"forward": 6.5}


def test_a_number_that_is_given_again_begins_a_new_account() -> None:
    ledger = JobLedger()
    ledger.add(account(1, 7, forward=5.0, account_id=1), NOW)
    assert ledger.add(account(1, 1, forward=1.0, account_id=2), NOW)
    assert seconds_of(ledger, 1) == {"forward": 6.0}


def test_a_ledger_goes_on_where_it_was_stored() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, forward=5.0, steps=3, flops_per_step=64.0), NOW)
    again = JobLedger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger
    again.add(account(0, 2, forward=6.0, steps=4), NOW)
    assert (seconds_of(again, 0), again.ranks[0].steps, again.flops_per_step) == ({"forward": 6.0}, 4, 64.0)


@pytest.mark.parametrize(
    ("waits", "straggler"),
    [
        ([0.5, 0.1, 0.55], (1, 0.425)),  # of the others the median
        ([0.5, 0.48, 0.51], None),
        ([0.5], None),
        ([], None),
    ],
)
def test_the_straggler_is_the_rank_that_waits_much_less_than_the_others(
    waits: list[float], straggler: tuple[int, float] | None
) -> None:
    ledger = JobLedger()
    for rank, wait in enumerate(waits):
        ledger.add(account(rank, 1, forward=10 - 10 * wait, exchange_wait=10 * wait, start_up=100.0, steps=20), NOW)
    found = ledger.straggler()
    expected: Any = None if straggler is None else (straggler[0], pytest.approx(straggler[1]))
    assert found == expected


@pytest.mark.parametrize(
    ("of_rank_0", "of_rank_1"),
    [
        ((0.2, 0.0, 100), (0.1, 0.1, 100)),  # it was over in an instant
        ((9.0, 1.0, 19), (1.0, 9.0, 19)),  # steps so few that the first ones rule
        ((30.0, 6.0, 400), (3.0, 5.0, 100)),  # rank 1 came late
        ((60.0, 6.0, 100), (6.0, 5.0, 100)),  # rank 0 has waited for longer, as the table shows
    ],
)
def test_no_straggler_is_named_where_the_accounts_are_short_or_of_other_times(
    of_rank_0: tuple[float, float, int], of_rank_1: tuple[float, float, int]
) -> None:
    ledger = JobLedger()
    for rank, (forward, wait, steps) in enumerate((of_rank_0, of_rank_1)):
        ledger.add(account(rank, 1, forward=forward, exchange_wait=wait, steps=steps), NOW)
    assert ledger.straggler() is None


def test_every_phase_was_spent_for_some_cause() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1, **cast(Any, {phase: float(2**i) for i, phase in enumerate(PHASES)})), NOW)
    causes = ledger.by_cause()
    assert sum(causes.values()) == 2 ** len(PHASES) - 1
    assert causes["start_up"] == 2.0 ** PHASES.index("start_up")
    assert list(causes) == ["productive", "start_up", "checkpoint", "healing", "idle"]


def test_a_ledger_is_up_to_date_once_all_were_heard_whatever_the_clock_has_become() -> None:
    ledger = JobLedger()
    ledger.add(account(0, 1), NOW)
    ledger.add(account(1, 1, is_last=True), NOW)
    again = JobLedger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert not again.is_up_to_date(running_s=1.0)
    again.add(account(0, 2), NOW - 90_000)  # set back by a day
    assert again.is_up_to_date(running_s=1.0)
    assert JobLedger.from_json(ledger.to_json()).is_up_to_date(running_s=31.0)
