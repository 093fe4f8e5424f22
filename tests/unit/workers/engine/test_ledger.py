"""A ledger accounts for all the time that passes, and for nothing else."""

import threading
import time
from typing import Any

import pytest
import torch

from lockstep.contract.facts import PHASES
from lockstep.v1.ledger_pb2 import PhaseSeconds
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import STEP_BOUNDS_S, Ledger, Listener, Phase, Point, Progress, Trainer
from lockstep.workers.engine import ledger as ledgers
from lockstep.workers.models.linear import LinearRegression

UNIT = 2.0**-10
"""A short time: less than a second passes between two steps that are looked into."""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledgers, "perf_counter", clock.perf_counter)
    return clock


class Waits:
    """A rank that has waited for others before."""

    waited_s = 5.0
    now_s = 0.0

    def waiting_s(self) -> float:
        return self.now_s


def spend(ledger: Ledger, clock: Clock, *phases: tuple[Phase, float]) -> None:
    for phase, seconds in phases:
        if phase not in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD):
            ledger.enter(phase)
        elif ledger.is_sampled:
            ledger.part(phase)
        clock.now += seconds


def step(ledger: Ledger, clock: Clock, *phases: tuple[Phase, float]) -> None:
    began = clock.now
    ledger.begin_step()
    spend(ledger, clock, *phases)
    ledger.end_step(clock.now - began, examples=32)


def told(ledger: Ledger) -> dict[Phase, float]:
    return {phase: round(s, 9) for phase, s in zip(Phase, ledger.account().seconds, strict=True) if round(s, 9)}


def test_every_second_belongs_to_the_phase_that_was_entered_last(clock: Clock) -> None:
    ledger = Ledger(spent_s=2.0)
    clock.now += 1.0
    step(ledger, clock, (Phase.FORWARD, 0.5), (Phase.BACKWARD, 0.75), (Phase.EXCHANGE, 0.25), (Phase.OPTIMIZER, 0.125))
    spend(ledger, clock, (Phase.VALIDATION, 4.0), (Phase.IDLE, 8.0))
    assert told(ledger) == {
        Phase.START_UP: 3.0,
        Phase.FORWARD: 0.5,
        Phase.BACKWARD: 0.75,
        Phase.EXCHANGE: 0.25,
        Phase.OPTIMIZER: 0.125,
        Phase.VALIDATION: 4.0,
        Phase.IDLE: 8.0,
    }


def test_the_part_of_an_exchange_in_which_the_rank_waits_is_told_apart(clock: Clock) -> None:
    waits = Waits()
    ledger = Ledger()
    ledger.follow(waits)
    waits.waited_s += 1.0  # hidden behind the backward pass: of no interest
    ledger.enter(Phase.EXCHANGE)
    clock.now += 0.5
    waits.waited_s += 0.25
    ledger.enter(Phase.EXCHANGE)
    clock.now += 0.5
    waits.waited_s += 3.0  # another thread waited meanwhile, and before
    ledger.enter(Phase.OPTIMIZER)
    assert told(ledger) == {Phase.EXCHANGE: 0.25, Phase.EXCHANGE_WAIT: 0.75}


def test_a_step_that_is_lost_was_spent_on_healing(clock: Clock) -> None:
    ledger = Ledger()
    step(ledger, clock, (Phase.FORWARD, 1.0))
    ledger.begin_step()
    spend(ledger, clock, (Phase.FORWARD, 1.0), (Phase.EXCHANGE, 2.0))
    ledger.lose_step()
    clock.now += 4.0
    step(ledger, clock, (Phase.FORWARD, 1.0))
    assert told(ledger) == {Phase.FORWARD: 2.0, Phase.HEALING: 7.0}
    assert ledger.account().steps == 2


def test_an_exchange_between_two_steps_that_fails_is_healing_and_what_was_done_before_it_is_not(clock: Clock) -> None:
    ledger = Ledger()
    step(ledger, clock, (Phase.FORWARD, 1.0))
    spend(ledger, clock, (Phase.VALIDATION, 2.0), (Phase.EXCHANGE, 30.0))
    ledger.lose_step()
    clock.now += 4.0
    assert told(ledger) == {Phase.FORWARD: 1.0, Phase.VALIDATION: 2.0, Phase.HEALING: 34.0}


def test_only_a_step_or_an_exchange_that_has_not_ended_is_under_way(clock: Clock) -> None:
    ledger = Ledger(spent_s=2.0)

    def under_way() -> dict[Phase, float]:
        return {phase: s for phase, s in zip(Phase, ledger.account().under_way, strict=True) if s}

    step(ledger, clock, (Phase.FORWARD, 1.0), (Phase.EXCHANGE, 1.0), (Phase.OPTIMIZER, 1.0))
    assert not under_way()
    ledger.begin_step()
    spend(ledger, clock, (Phase.FORWARD, 2.0), (Phase.EXCHANGE, 3.0))
    assert under_way() == {Phase.FORWARD: 2.0, Phase.EXCHANGE: 3.0}
    spend(ledger, clock, (Phase.OPTIMIZER, 1.0))
    ledger.end_step(6.0, examples=32)
    assert not under_way()
    spend(ledger, clock, (Phase.EXCHANGE, 4.0))
    assert under_way() == {Phase.EXCHANGE: 4.0}
    spend(ledger, clock, (Phase.IDLE, 5.0))
    assert not under_way()


def test_a_device_is_not_asked_about_a_step_that_was_lost(clock: Clock) -> None:
    ledger = Ledger()
    ledger.follow(Waits(), DeviceMarks())  # knows no other order of marks than that of a whole step
    ledger.begin_step()
    spend(ledger, clock, (Phase.FORWARD, 1.0))
    ledger.lose_step()
    clock.now += 30.0
    step(ledger, clock, (Phase.FORWARD, 1.0), (Phase.BACKWARD, 3.0), (Phase.EXCHANGE, 1.0), (Phase.OPTIMIZER, 0.0))
    assert told(ledger) == {Phase.HEALING: 31.0, Phase.FORWARD: 1.0, Phase.BACKWARD: 3.0, Phase.EXCHANGE_WAIT: 1.0}


def test_what_was_done_before_a_rank_is_lost_between_two_steps_is_not_undone(clock: Clock) -> None:
    ledger = Ledger()
    step(ledger, clock, (Phase.FORWARD, 1.0))
    spend(ledger, clock, (Phase.VALIDATION, 2.0))
    ledger.lose_step()
    clock.now += 4.0
    assert told(ledger) == {Phase.FORWARD: 1.0, Phase.VALIDATION: 2.0, Phase.HEALING: 4.0}


def test_a_rank_that_is_lost_before_the_first_step_still_starts(clock: Clock) -> None:
    ledger = Ledger()
    clock.now += 1.0
    ledger.lose_step()
    clock.now += 1.0
    assert told(ledger) == {Phase.START_UP: 2.0}


def test_steps_are_counted_by_their_duration(clock: Clock) -> None:
    ledger = Ledger()
    for seconds in (0.001, 0.0011, 0.7, 1000.0):
        ledger.end_step(seconds, examples=10)
    account = ledger.account()
    assert (account.steps, account.examples) == (4, 40)
    assert account.step_seconds == pytest.approx(1000.7021)
    counted = {
        bound: count for bound, count in zip((*STEP_BOUNDS_S, "more"), account.step_counts, strict=True) if count
    }
    assert counted == {0.001: 1, 0.0025: 1, 1.0: 1, "more": 1}


def test_the_phases_are_the_fields_of_the_contract_in_their_order() -> None:
    assert tuple(f"{phase}_s" for phase in PHASES) == tuple(field.name for field in PhaseSeconds.DESCRIPTOR.fields)


def test_steps_that_are_not_looked_into_are_divided_as_those_that_are(clock: Clock) -> None:
    ledger = Ledger()
    before = [0.0] * len(Phase)
    steps = 2 * ledgers.SAMPLED_EVERY + 2
    sampled = 0
    for _ in range(steps):
        began = clock.now
        ledger.begin_step()
        # What one of many does counts for the others, and the exchange is looked at in all of them.
        sampled += ledger.is_sampled
        forward, backward = (UNIT, 3 * UNIT) if ledger.is_sampled else (4 * UNIT, 0.0)
        spend(ledger, clock, (Phase.FORWARD, forward), (Phase.BACKWARD, backward))
        spend(ledger, clock, (Phase.EXCHANGE, UNIT / 2), (Phase.OPTIMIZER, UNIT / 4))
        ledger.end_step(clock.now - began, examples=32)
        seconds = ledger.account().seconds
        assert all(now >= then - 1e-9 for now, then in zip(seconds, before, strict=True))
        before = list(seconds)
    assert sampled == 4
    expected = {Phase.FORWARD: 1.0, Phase.BACKWARD: 3.0, Phase.EXCHANGE: 0.5, Phase.OPTIMIZER: 0.25}
    assert told(ledger) == pytest.approx({phase: UNIT * steps * times for phase, times in expected.items()})
    assert ledger.account().steps == steps


def test_slow_steps_are_looked_into_more_often(clock: Clock) -> None:
    ledger = Ledger()
    sampled = []
    for _ in range(12):
        ledger.begin_step()
        sampled.append(ledger.is_sampled)
        clock.now += 0.4 * ledgers.SAMPLED_EVERY_S
        ledger.end_step(0.4 * ledgers.SAMPLED_EVERY_S, examples=32)
    assert sampled == [True, True, False, False, True, False, False, True, False, False, True, False]


class DeviceMarks:
    """A device that is busy for 1 part with each forward pass and 3 with each backward pass."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.reads = 0

    def set(self, phase: Phase) -> None:
        self.phases.append(phase)

    def seconds(self) -> dict[Phase, float]:
        self.reads += 1
        phases, self.phases = self.phases, []
        assert phases == [Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.EXCHANGE, Phase.OPTIMIZER]
        return {Phase.FORWARD: 1.0, Phase.BACKWARD: 3.0, Phase.EXCHANGE: 9.0}

    def forget(self) -> None:
        self.phases = []


def test_on_a_device_the_time_of_all_steps_is_divided_as_in_the_one_that_was_measured(clock: Clock) -> None:
    marks = DeviceMarks()
    ledger = Ledger()
    ledger.follow(Waits(), marks)
    steps = 2 * ledgers.SAMPLED_EVERY + 2
    for _ in range(steps):  # launches return at once; the host waits before the exchange
        ledger.begin_step()
        spend(ledger, clock, (Phase.FORWARD, 0.0), (Phase.BACKWARD, 0.0))
        clock.now += 4 * UNIT
        spend(ledger, clock, (Phase.EXCHANGE, UNIT), (Phase.OPTIMIZER, 0.0))
        ledger.end_step(5 * UNIT, examples=32)
    assert marks.reads == 4
    expected = {Phase.FORWARD: UNIT * steps, Phase.BACKWARD: 3 * UNIT * steps, Phase.EXCHANGE_WAIT: UNIT * steps}
    assert told(ledger) == pytest.approx(expected)
    spend(ledger, clock, (Phase.VALIDATION, 2.0))
    assert told(ledger)[Phase.VALIDATION] == 2.0


def test_a_stop_in_the_middle_of_a_step_undoes_nothing_and_hides_nothing_that_follows(clock: Clock) -> None:
    for marks in (None, DeviceMarks()):
        ledger = Ledger()
        ledger.follow(Waits(), marks)
        ledger.begin_step()
        spend(ledger, clock, (Phase.FORWARD, 1.0), (Phase.EXCHANGE, 1.0))
        ledger.leave_step()
        spend(ledger, clock, (Phase.CHECKPOINT, 60.0))
        ledger.lose_step()  # the others have gone meanwhile
        clock.now += 1.0
        exchange = Phase.EXCHANGE if marks is None else Phase.EXCHANGE_WAIT
        assert told(ledger) == {Phase.FORWARD: 1.0, exchange: 1.0, Phase.CHECKPOINT: 60.0, Phase.HEALING: 1.0}


def test_a_wait_that_is_under_way_is_told_as_one(clock: Clock) -> None:
    waits, ledger = Waits(), Ledger()
    ledger.follow(waits)
    ledger.enter(Phase.EXCHANGE)
    clock.now += 31.0
    waits.now_s = 30.0
    assert told(ledger) == {Phase.EXCHANGE: 1.0, Phase.EXCHANGE_WAIT: 30.0}


def test_readers_see_whole_steps_while_another_thread_writes() -> None:
    began = time.perf_counter()
    ledger = Ledger()
    made = time.perf_counter()
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            ledger.begin_step()
            if ledger.is_sampled:
                ledger.part(Phase.FORWARD)
            ledger.enter(Phase.EXCHANGE)
            ledger.end_step(0.001, examples=1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2_000):
            before = time.perf_counter()
            account = ledger.account()
            after = time.perf_counter()
            assert before - made - 1e-6 <= sum(account.seconds) <= after - began + 1e-6
            assert sum(account.step_counts) == account.steps == account.examples
    finally:
        is_over.set()
        writer.join()


class EndOfTraining(Listener):
    """Notes when the result is told."""

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.progress = progress


def train(**settings: Any) -> Ledger:
    """The ledger of a run, whose phases add up to no less than it took and to no more than passed around it."""
    data = SyntheticRegression((2.0, -3.4, 1.0), 4.2, 0.01, train_size=1000, validation_size=500, seed=0)
    data.load()
    before = time.perf_counter()
    ledger = Ledger()
    began = time.perf_counter()
    Trainer(**settings).fit(
        LinearRegression(3), data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), ledger=ledger
    )
    ended = time.perf_counter()
    total_s = sum(ledger.account().seconds)
    after = time.perf_counter()
    assert ended - began - 1e-6 <= total_s <= after - before + 1e-6
    return ledger


def test_the_phases_of_a_run_add_up_to_its_time() -> None:
    account = train(max_epochs=5, batch_size=30, shards=4, log_every_steps=10).account()
    for phase in (Phase.START_UP, Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.VALIDATION):
        assert account.seconds[phase] > 0, phase
    assert account.seconds[Phase.EXCHANGE_WAIT] == account.seconds[Phase.HEALING] == 0
    assert (account.steps, account.examples) == (170, 5000)
    assert sum(account.step_counts) == 170


@pytest.mark.parametrize("batch_size", [30, 33])
def test_the_operations_of_a_step_are_those_of_its_whole_minibatch(batch_size: int) -> None:
    account = train(max_steps=3, batch_size=batch_size, shards=4).account()
    # A multiplication and an addition for each weight, forward and backward: the data needs no gradient.
    assert account.flops_per_step == 2 * 2 * 3 * batch_size
