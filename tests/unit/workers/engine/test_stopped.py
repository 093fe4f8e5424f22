"""A process that was stopped and goes on, as after a snapshot of its machine, takes nobody else for hung."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from lockstep.workers.awake_clock import LONGEST_GAP_S, TICK_S, AwakeClock
from tests.support import stopped_process
from tests.support.processes import forking_context
from tests.support.stopped_process import WHAT

STOPPED_S = 2.0 * stopped_process.HANG_TIMEOUT_S


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """What real processes say, by what they do, that were stopped for STOPPED_S in the middle of it: all at once."""
    context = forking_context()

    def said_by(what: str) -> list[str]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=stopped_process.say_what, args=(what, theirs))
        process.start()
        theirs.close()
        try:
            return until_the_end(ours, lambda number: os.kill(process.pid or 0, number))
        finally:
            process.kill()
            process.join()

    with ThreadPoolExecutor(len(WHAT)) as threads:
        return dict(zip(WHAT, threads.map(said_by, WHAT), strict=True))


def until_the_end(said: Connection, signal_it: Callable[[int], None]) -> list[str]:
    """What comes, apart from "ready", at which the process is stopped."""
    words: list[str] = []
    with contextlib.suppress(EOFError):
        while True:
            word = said.recv()
            if word == "ready":
                signal_it(signal.SIGSTOP)
                time.sleep(STOPPED_S)
                signal_it(signal.SIGCONT)
            else:
                words.append(word)
    return words


def test_the_time_in_which_a_process_is_stopped_does_not_count(said: dict[str, list[str]]) -> None:
    passed_s, awake_s = map(float, said["clock"][0].split())
    assert passed_s >= STOPPED_S
    assert awake_s <= passed_s - STOPPED_S + LONGEST_GAP_S


@pytest.mark.parametrize("what", [name for name in WHAT if name != "clock"])
def test_a_process_that_was_stopped_takes_nobody_for_hung(said: dict[str, list[str]], what: str) -> None:
    assert said[what] == ["None"]


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
