"""Accounts of ranks hold no less than nothing and add up, whatever happens to the workers that tell them.

Ledgers of workers and of the server are the real ones; only time is played.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockstep.contract.facts import PHASES
from lockstep.server.ledger.ledger import JobLedger
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest
from lockstep.v1.ledger_pb2 import PhaseSeconds
from lockstep.workers.engine import Ledger, Phase
from lockstep.workers.engine import ledger as ledgers

BETWEEN_STEPS = (Phase.VALIDATION, Phase.CHECKPOINT, Phase.IDLE, Phase.EXCHANGE)
INSIDE_STEPS = (Phase.EXCHANGE, Phase.OPTIMIZER)
EXACT = 1e-6


class Waits:
    """The waits of one rank's group, all of its exchanges so far."""

    def __init__(self) -> None:
        self.waited_s = self.now_s = 0.0

    def waiting_s(self) -> float:
        return self.now_s


class PlayedWorker:
    """A worker with a real ledger, and what it has told."""

    def __init__(self, attempt: int, number: int, now: float, spent_s: float) -> None:
        self.attempt, self.number, self.began, self.spent_s = attempt, number, now, spent_s
        self.rank: int | None = None
        self.sequence = self.steps = 0
        self.step_began: float | None = None
        self.ledger, self.waits = Ledger(spent_s), Waits()
        self.ledger.follow(self.waits)
        self.has_told_all = False

    def report(self, *, is_last: bool = False) -> ReportLedgerRequest:
        account = self.ledger.account()
        self.sequence += 1
        return ReportLedgerRequest(
            job_id="job-1",
            attempt=self.attempt,
            number=self.number,
            rank=self.number if self.rank is None else self.rank,
            node_id=f"node-{self.number}",
            sequence=self.sequence,
            seconds=_seconds(account.seconds),
            under_way=_seconds(account.under_way),
            steps=account.steps,
            step_duration_counts=account.step_counts,
            step_duration_sum_s=account.step_seconds,
            is_last=is_last,
        )


def _seconds(seconds: tuple[float, ...]) -> PhaseSeconds:
    return PhaseSeconds(**{f"{phase}_s": value for phase, value in zip(PHASES, seconds, strict=True)})


def _list(told: PhaseSeconds) -> list[float]:
    return [getattr(told, f"{phase}_s") for phase in PHASES]


some_time = st.floats(0.0, 40.0)
a_worker = st.integers(0, 7)


class Accounts(RuleBasedStateMachine):
    """A job through heals, losses, restarts of job and server, reports that are lost, late or come twice."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self._clock = mock.patch.object(ledgers, "perf_counter", lambda: self.now)
        self._clock.start()
        self.job = JobLedger()
        self.attempt = self.number = 0
        self.workers: list[PlayedWorker] = []
        self.all_told: dict[tuple[int, int], ReportLedgerRequest] = {}
        self.late: list[ReportLedgerRequest] = []
        self.counted: dict[str, float] = {}

    def teardown(self) -> None:
        self._clock.stop()

    def worker(self, index: int) -> PlayedWorker:
        return self.workers[index % len(self.workers)]

    def form(self) -> None:
        """The next generation: those who are left move up, and are told so before they know what they have lost."""
        for rank, worker in enumerate(self.workers):
            worker.rank = rank

    @initialize(workers=st.integers(1, 4), spent_s=st.floats(0.0, 60.0))
    def begin(self, workers: int, spent_s: float) -> None:
        self.attempt += 1
        self.number = 0
        self.workers = []
        for _ in range(workers):
            self.join(spent_s)
        self.form()

    @rule(spent_s=st.floats(0.0, 60.0))
    def join(self, spent_s: float) -> None:
        if len(self.workers) < 8:
            self.workers.append(PlayedWorker(self.attempt, self.number, self.now, spent_s))
            self.number += 1

    @rule(seconds=some_time)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(index=a_worker)
    def begin_step(self, index: int) -> None:
        worker = self.worker(index)
        if worker.step_began is None:
            worker.step_began = self.now
            worker.ledger.begin_step()

    @rule(index=a_worker, phase=st.sampled_from(INSIDE_STEPS))
    def go_on_in_a_step(self, index: int, phase: Phase) -> None:
        worker = self.worker(index)
        if worker.step_began is not None:
            worker.waits.now_s = 0.0
            worker.ledger.enter(phase)

    @rule(index=a_worker, waited_s=some_time, is_over=st.booleans())
    def wait(self, index: int, waited_s: float, is_over: bool) -> None:
        """Another thread may wait at the same time, and longer than the phase has lasted."""
        waits = self.worker(index).waits
        self.now += waited_s / 2
        waits.waited_s += waited_s if is_over else 0.0
        waits.now_s = 0.0 if is_over else waited_s

    @rule(index=a_worker)
    def end_step(self, index: int) -> None:
        worker = self.worker(index)
        if worker.step_began is not None:
            worker.ledger.end_step(self.now - worker.step_began, examples=32)
            worker.step_began = None
            worker.steps += 1

    @rule(index=a_worker, phase=st.sampled_from(BETWEEN_STEPS))
    def do_something_between_steps(self, index: int, phase: Phase) -> None:
        worker = self.worker(index)
        if worker.step_began is None:
            worker.ledger.enter(phase)

    @rule(index=a_worker)
    def stop_in_a_step(self, index: int) -> None:
        worker = self.worker(index)
        worker.ledger.leave_step()
        worker.step_began = None

    @rule(index=a_worker)
    def lose_a_peer(self, index: int) -> None:
        worker = self.worker(index)
        worker.ledger.lose_step()
        worker.step_began, worker.waits = None, Waits()
        worker.ledger.follow(worker.waits)

    @rule(index=a_worker, seconds=some_time)
    def a_worker_dies(self, index: int, seconds: float) -> None:
        if len(self.workers) < 2:
            return
        self.workers.remove(self.worker(index))
        self.now += seconds
        self.form()

    @rule()
    def the_ranks_change(self) -> None:
        self.form()

    @rule(workers=st.integers(1, 4), spent_s=st.floats(0.0, 60.0))
    def the_job_starts_again(self, workers: int, spent_s: float) -> None:
        self.begin(workers, spent_s)

    @rule(index=a_worker, arrives=st.sampled_from(("at once", "never", "late", "twice")), is_last=st.booleans())
    def report(self, index: int, arrives: str, is_last: bool) -> None:
        worker = self.worker(index)
        # The last one is told again until it is heard; nothing else follows it.
        told = worker.report(is_last=worker.has_told_all or (is_last and arrives == "at once"))
        if told.is_last:
            worker.ledger.leave_step()
            worker.has_told_all = True
        if arrives == "late":
            self.late.append(told)
        elif arrives != "never":
            self.take(told)
            if arrives == "twice":
                self.take(told)

    @precondition(lambda self: self.late)
    @rule()
    def a_late_report_arrives(self) -> None:
        self.take(self.late.pop())

    def take(self, told: ReportLedgerRequest) -> None:
        # The server's clock may be set back at any time.
        if self.job.add(told, 1_000.0 - self.now):
            self.all_told[told.attempt, told.number] = told

    @rule()
    def the_server_is_started_again(self) -> None:
        self.job = JobLedger.from_json(json.loads(json.dumps(self.job.to_json())))

    @invariant()
    def a_worker_accounts_for_all_of_its_time(self) -> None:
        for worker in self.workers:
            account = worker.ledger.account()
            assert sum(account.seconds) == pytest.approx(self.now - worker.began + worker.spent_s, abs=EXACT)
            pairs = list(zip(account.seconds, account.under_way, strict=True))
            assert all(-EXACT <= part <= whole + EXACT for whole, part in pairs)

    @invariant()
    def no_phase_of_a_rank_has_less_than_nothing(self) -> None:
        for rank, account in self.job.ranks.items():
            assert min(account.seconds) >= 0
            assert min(self.job.seconds_of(rank)) >= 0

    @invariant()
    def the_ranks_have_what_was_told_and_no_more(self) -> None:
        settled = sum(
            sum(_list(told.seconds)) - (0.0 if told.is_last else sum(_list(told.under_way)))
            for told in self.all_told.values()
        )
        assert sum(sum(account.seconds) for account in self.job.ranks.values()) == pytest.approx(settled, abs=EXACT)
        whole = sum(sum(_list(told.seconds)) for told in self.all_told.values())
        shown = sum(sum(self.job.seconds_of(rank)) for rank in self.job.ranks)
        assert settled - EXACT <= shown <= whole + EXACT

    @invariant()
    def what_is_counted_never_falls(self) -> None:
        counted = self.job.by_cause()
        assert all(counted[cause] >= seconds for cause, seconds in self.counted.items())
        assert sum(counted.values()) == pytest.approx(sum(sum(a.seconds) for a in self.job.ranks.values()), abs=EXACT)
        self.counted = counted

    @invariant()
    def a_straggler_is_one_for_at_most_all_of_the_time(self) -> None:
        found = self.job.straggler()
        assert found is None or 0 < found[1] <= 1


TestAccounts: Any = Accounts.TestCase
TestAccounts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_wait_for_a_rank_that_is_lost_names_no_straggler_and_takes_nothing_from_those_who_move_up() -> None:
    """Two of four ranks are cut off; the others wait for 30 s, tell so, move up, and learn that they were healing."""
    now = 0.0
    with mock.patch.object(ledgers, "perf_counter", lambda: now):
        job = JobLedger()
        workers = [PlayedWorker(1, number, now, 0.0) for number in range(4)]
        for rank, worker in enumerate(workers):
            worker.rank = rank
            worker.ledger.begin_step()
            worker.ledger.enter(Phase.EXCHANGE)
        now = 1.0
        for worker in workers:
            worker.waits.waited_s = 0.5
            worker.ledger.end_step(1.0, 32)
            worker.ledger.begin_step()
            worker.ledger.enter(Phase.EXCHANGE)
            job.add(worker.report(), now)
        now = 26.0
        for worker in workers[2:]:
            worker.waits.now_s = 25.0
            job.add(worker.report(), now)
        assert job.straggler() is None
        assert job.seconds_of(3)[Phase.EXCHANGE_WAIT] == pytest.approx(25.5)
        for rank, worker in enumerate(workers[2:]):
            worker.rank = rank
            job.add(worker.report(), now)
        now = 32.0
        for worker in workers[2:]:
            worker.ledger.lose_step()
            job.add(worker.report(), now)
        for rank in (0, 1):
            assert job.seconds_of(rank)[Phase.HEALING] == pytest.approx(31.0)
            assert job.seconds_of(rank)[Phase.EXCHANGE_WAIT] == pytest.approx(0.5)
        for rank in (2, 3):
            assert sum(job.seconds_of(rank)) == pytest.approx(1.0)
        assert job.straggler() is None
