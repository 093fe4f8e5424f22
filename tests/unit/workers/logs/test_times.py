"""A line has the time at which it was printed, however late it arrives."""

from itertools import pairwise
from pathlib import Path

import pytest

from lockstep.workers.logs import times as times_module
from lockstep.workers.logs.times import COARSE_S, PrintTimes
from tests.support.log_stage import Coordinator
from tests.unit.workers.logs.test_shipping import run_worker

SCRIPT = """
import time

def pause():
    time.sleep(0.1)

for number in range(4):
    print(time.time())
    pause()
sys.stderr.write(f"{time.time()}\\n")
pause()
configure_logger()
logging.getLogger("lockstep").info("%r", time.time())
pause()
libc = ctypes.CDLL(None)
libc.puts(repr(time.time()).encode())
libc.fflush(None)
pause()
print(time.time())
# The server has been away until now.
order.coordinator_address = ADDRESS
printed.end(20)
"""


def test_lines_that_arrive_late_have_the_times_of_printing(base: Path, coordinator: tuple[Coordinator, str]) -> None:
    servicer, address = coordinator
    done = run_worker(base, "127.0.0.1:1", SCRIPT.replace("ADDRESS", repr(address)))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for request in servicer.requests for line in request.lines]
    printed = [float(line.text.removeprefix("INFO ")) for line in lines]
    told = [line.time.ToMicroseconds() / 1e6 for line in lines]
    assert len(lines) == 8
    by_c = 6
    for number, (_, following) in enumerate(pairwise(printed)):
        # What C prints has the time of Python's next print, at the latest.
        limit = following if number != by_c else told[number + 1]
        assert printed[number] - 1e-3 <= told[number] <= limit, number
    assert told == sorted(told)


class Clock:
    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(times_module, "time", clock)
    return clock


def test_a_line_has_the_time_of_the_write_that_ended_it(clock: Clock) -> None:
    times = PrintTimes()
    for position, passes_s in ((10, 1.0), (20, 5.0), (30, 0.0)):
        times.note(position)
        clock.now += passes_s
    assert [times.of(end, 2000.0) for end in (5, 10, 15, 20, 30)] == [1000.0, 1000.0, 1001.0, 1001.0, 1006.0]
    assert times.of(31, 2000.0) == 2000.0, "nobody has told of it"


def test_no_line_is_of_later_than_it_was_read(clock: Clock) -> None:
    times = PrintTimes()
    clock.now += 50.0
    times.note(100)  # a library in C has printed the first part of it before
    assert times.of(40, 1010.0) == 1010.0


def test_what_is_printed_at_once_has_one_time_and_takes_one_place(clock: Clock) -> None:
    times = PrintTimes()
    for position in range(1, 1001):
        times.note(position)
        clock.now += COARSE_S / 100
    assert len(times._marks) <= 11
    assert 1000.0 <= times.of(5, 2000.0) <= 1000.0 + COARSE_S
    assert clock.now - 2 * COARSE_S <= times.of(1000, 2000.0) <= clock.now


def test_a_flood_that_nobody_reads_takes_a_bounded_room(clock: Clock) -> None:
    times = PrintTimes()
    for position in range(1, times_module.MOST_MARKS + 100):
        times.note(position)
        clock.now += 1.0
    assert len(times._marks) == times_module.MOST_MARKS
    assert times.of(1, 1e9) >= 1000.0
    assert times.of(times_module.MOST_MARKS + 99, 1e9) == clock.now - 1.0
