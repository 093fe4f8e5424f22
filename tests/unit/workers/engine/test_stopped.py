"""A process that was stopped and goes on, as after a snapshot of its machine, takes nobody else for hung."""

import sys

import pytest

from lockstep.workers.engine.awake import LONGEST_GAP_S, TICK_S, AwakeClock
from tests.support import stopped_process
from tests.support.stopping import stop_and_go_on

STOPPED_S = 2.0 * stopped_process.HANG_TIMEOUT_S


def said_by(what: str) -> list[str]:
    """What a real process says that was stopped for STOPPED_S in the middle of its work."""
    return stop_and_go_on([sys.executable, "-m", stopped_process.__name__, what], STOPPED_S)


def test_the_time_in_which_a_process_is_stopped_does_not_count() -> None:
    passed_s, awake_s = map(float, said_by("clock")[0].split())
    assert passed_s >= STOPPED_S
    assert awake_s <= passed_s - STOPPED_S + LONGEST_GAP_S


@pytest.mark.parametrize("what", ["watchdog", "gang", "writer", "meeting"])
def test_a_process_that_was_stopped_takes_nobody_for_hung(what: str) -> None:
    assert said_by(what) == ["None"]


def test_a_clock_that_ticks_late_on_a_busy_machine_counts_all_of_the_time() -> None:
    now = 100.0
    clock = AwakeClock(lambda: now)
    began = clock.now()
    for late_s in (TICK_S, LONGEST_GAP_S, LONGEST_GAP_S / 2):
        now += late_s
        clock.now()
    assert clock.now() - began == pytest.approx(now - 100.0)
    now += 50.0
    assert clock.now() - began == pytest.approx(now - 100.0 - 50.0 + TICK_S)
    assert clock.frozen_s() == pytest.approx(50.0 - TICK_S)
