"""Measures silence in a process that is stopped meanwhile: test_stopped.py runs each of these functions in one.

Each is given what says "ready" when the process may be stopped, and its verdict once it goes on.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers import awake_clock
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.calls import Presence
from lockstep.workers.engine import Activity
from lockstep.workers.engine.exchange.transport import Endpoint
from lockstep.workers.engine.state.writer import Writer
from lockstep.workers.launcher.attempt.events import CameUp, Hung, Taken
from lockstep.workers.launcher.attempt.state import Bits, Member, Ranked
from lockstep.workers.launcher.fleet import Process, Shape
from lockstep.workers.launcher.gang import Gang

HANG_TIMEOUT_S = 2.0


Say = Callable[[str], None]


def clock(say: Say) -> None:
    """Tell the seconds that have passed, and those in which this process ran."""
    began, awake_from = time.monotonic(), awake_clock.now()
    say("ready")
    while time.monotonic() - began < 4.0:
        time.sleep(0.1)
    say(f"{time.monotonic() - began} {awake_clock.now() - awake_from}")


def watchdog(say: Say) -> None:
    """Ask a rank that computes whether it hangs, at once when it goes on."""
    beating = Watchdog(HANG_TIMEOUT_S)
    for step in (1, 2):
        beating.beat(Activity.COMPUTE, step)
    asked = time.monotonic()
    say("ready")
    while time.monotonic() - asked < HANG_TIMEOUT_S + 1.0:
        asked = time.monotonic()
        assert beating.why_hung() is None, beating.why_hung()
        beating.beat(Activity.COMPUTE, 3)
        time.sleep(0.05)
    say(str(beating.why_hung()))


class SlowAnswer:
    """A call that is answered after a while."""

    def __init__(self, value: Any, delay_s: float) -> None:
        self._value, self._delay_s = value, delay_s

    def remote(self, *_: Any) -> "SlowAnswer":
        return self

    def future(self) -> "Future[Any]":
        answer: Future[Any] = Future()
        if self._delay_s:
            timer = threading.Timer(self._delay_s, answer.set_result, (self._value,))
            timer.daemon = True
            timer.start()
        return answer


class SlowWorker:
    """Comes up, has nothing new to tell, and takes its time to give a sign of life."""

    def __init__(self) -> None:
        self.begin = SlowAnswer(Presence("127.0.0.1:1", 1), 0.01)
        self.status, self.why_hung = SlowAnswer(None, 0.0), SlowAnswer(None, HANG_TIMEOUT_S / 2)


class PlayedPool:
    def take(self, order: StartGang, node_id: str, number: int, *, fresh: bool) -> Process:
        return Process("worker", SlowWorker(), node_id, Shape())

    def is_up(self, process: Process, pid: int, gpu_ids: tuple[str, ...]) -> None:
        pass


def gang(say: Say) -> None:
    """Watch a worker that answers in time, as the launcher does."""
    order = StartGang()
    order.spec.recovery.hang_timeout_s = HANG_TIMEOUT_S
    watched = Gang(PlayedPool(), order, epoch=1)  # type: ignore[arg-type]
    watched.take(0, "node")
    assert isinstance(watched.next_event([], None), Taken)
    assert isinstance(watched.next_event([], None), CameUp)
    members = [Member(0, "node", Ranked(Bits("cpu", "0123"), 0, 1), "127.0.0.1:1")]
    kill_by = awake_clock.now() + HANG_TIMEOUT_S
    while not watched.is_asked(0):
        watched.next_event(members, awake_clock.now() + 0.05)
    said = time.monotonic()
    say("ready")
    while time.monotonic() - said < 0.5:  # until this process was stopped
        said = time.monotonic()
        event = watched.next_event(members, awake_clock.now() + 0.05)
        assert not isinstance(event, Hung), event
        assert kill_by > awake_clock.now(), "what a worker may take is over, and it has not run"
    for _ in range(20):
        event = watched.next_event(members, awake_clock.now() + 0.05)
        assert not isinstance(event, Hung), event
    say("None")


def writer(say: Say) -> None:
    """Wait for a checkpoint that is being written."""
    failures: list[Exception] = []

    class SlowDisk:
        def take_over(self) -> None:
            time.sleep(0.3)

        def kept(self) -> list[Any]:
            return []

    writing = Writer(SlowDisk(), (), lambda kept: None, lambda step, error: failures.append(error))  # type: ignore[arg-type]
    writing.take_over()
    writing._give_up_at = awake_clock.now() + HANG_TIMEOUT_S
    say("ready")
    writing.wait()
    say(str(writing._is_late or None))


def meeting(say: Say) -> None:
    """Wait for another rank, which comes in time."""
    endpoints = [Endpoint("127.0.0.1"), Endpoint("127.0.0.1")]
    addresses = [endpoint.address for endpoint in endpoints]

    def come() -> None:
        time.sleep(HANG_TIMEOUT_S / 2)
        endpoints[1].connect(1, addresses, b"key", timeout_s=60)

    threading.Thread(target=come, daemon=True).start()
    awake_clock.now()
    say("ready")
    endpoints[0].connect(0, addresses, b"key", timeout_s=HANG_TIMEOUT_S)
    say("None")


WHAT = {function.__name__: function for function in (clock, watchdog, gang, writer, meeting)}


def say_what(name: str, connection: Connection) -> None:
    """Run one of them."""
    WHAT[name](connection.send)
    connection.close()
