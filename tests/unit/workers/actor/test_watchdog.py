"""A hung worker is told from a slow one and from one that waits."""

import pytest

from lockstep.workers.actor import watchdog
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.engine import Activity


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock.now)
    return clock


def run_steps(beating: Watchdog, clock: Clock, steps: int, shard_s: float) -> None:
    for step in range(1, steps + 1):
        beating.beat(Activity.COMPUTE, step)
        clock.now += shard_s
        beating.beat(Activity.EXCHANGE, step)


def test_a_worker_that_computes_too_long_is_hung(clock: Clock) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=0.1)
    beating.beat(Activity.COMPUTE, 6)
    clock.now += 29
    assert beating.why_hung() is None
    clock.now += 2
    assert beating.why_hung() == "was in phase compute of step 6 for 31 s (allowed: 30 s)"


def test_slow_shards_may_take_ten_times_their_median(clock: Clock) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=20)
    beating.beat(Activity.COMPUTE, 6)
    clock.now += 199
    assert beating.why_hung() is None
    clock.now += 2
    assert beating.why_hung() is not None


@pytest.mark.parametrize(
    ("activity", "step", "what"),
    [
        (Activity.LOAD, 0, "was reading its data or a checkpoint"),
        (Activity.COMPUTE, 101, "was in phase compute of step 101"),
    ],
)
def test_what_nothing_is_known_of_yet_may_take_long_but_not_for_ever(
    clock: Clock, activity: Activity, step: int, what: str
) -> None:
    beating = Watchdog(hang_timeout_s=30)
    beating.beat(activity, step)
    clock.now += 599
    assert beating.why_hung() is None
    clock.now += 2
    assert beating.why_hung() == f"{what} for 601 s (allowed: 600 s, 20 times recovery.hang_timeout_s)"


def evaluate(beating: Watchdog, clock: Clock, batches: int, batch_s: float) -> None:
    for _ in range(batches):
        beating.beat(Activity.EVALUATE, 5)
        clock.now += batch_s
    beating.beat(Activity.EXCHANGE, 5)


def test_a_batch_of_the_validation_is_not_measured_by_a_shard_of_training(clock: Clock) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=0.1)
    beating.beat(Activity.EVALUATE, 5)
    clock.now += 599
    assert beating.why_hung() is None
    clock.now += 2
    words = "was in phase evaluate of step 5 for 601 s (allowed: 600 s, 20 times recovery.hang_timeout_s)"
    assert beating.why_hung() == words


@pytest.mark.parametrize(("batch_s", "limit_s"), [(0.1, 30), (20, 200)])
def test_a_later_batch_of_the_validation_is_measured_by_those_before(
    clock: Clock, batch_s: float, limit_s: float
) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=0.01)
    evaluate(beating, clock, 3, batch_s)
    beating.beat(Activity.EVALUATE, 10)
    clock.now += limit_s - 1
    assert beating.why_hung() is None
    clock.now += 2
    assert beating.why_hung() is not None


def test_slow_validation_makes_training_no_more_patient(clock: Clock) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=0.1)
    evaluate(beating, clock, 64, batch_s=20)
    beating.beat(Activity.COMPUTE, 6)
    clock.now += 31
    assert beating.why_hung() is not None


def test_a_long_step_after_a_long_time_of_reading_is_measured_anew(clock: Clock) -> None:
    beating = Watchdog(hang_timeout_s=30)
    beating.beat(Activity.LOAD, 0)
    clock.now += 10_000
    beating.beat(Activity.JOIN, 0)
    clock.now += 10_000
    assert beating.why_hung() is None


@pytest.mark.parametrize(
    "activity", [Activity.EXCHANGE, Activity.JOIN, Activity.REPORT, Activity.FINISH, Activity.CHECKPOINT]
)
def test_whoever_waits_is_not_hung(clock: Clock, activity: Activity) -> None:
    beating = Watchdog(hang_timeout_s=30)
    run_steps(beating, clock, 5, shard_s=0.1)
    beating.beat(activity, 6)
    clock.now += 10_000
    assert beating.why_hung() is None


def test_whoever_waits_for_a_warm_up_does_not_wait_for_ever(clock: Clock) -> None:
    waiting = Watchdog(hang_timeout_s=30)
    clock.now += watchdog.WARM_UP_S - 1
    assert waiting.why_hung() is None
    clock.now += 2
    assert waiting.why_hung() == "was waiting for the end of the warm-up of its process for 61 s (allowed: 60 s)"
