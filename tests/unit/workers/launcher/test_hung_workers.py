"""Who is asked for a sign of life, with actors that are played."""

import time
from concurrent.futures import Future
from typing import Any

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_spec_pb2 import JobSpec, RecoverySpec
from lockstep.workers.calls import Presence
from lockstep.workers.launcher.attempt.events import CameUp, Hung, Taken
from lockstep.workers.launcher.attempt.state import Member, Reading
from lockstep.workers.launcher.fleet import Process, Shape
from lockstep.workers.launcher.gang import Gang

WORDS = "was reading its data or a checkpoint for 21 s"


class Answer:
    """A call to an actor that has ended, or never ends."""

    def __init__(self, *values: Any) -> None:
        self._future: Future[Any] = Future()
        if values:
            self._future.set_result(values[0])

    def remote(self, *args: Any) -> "Answer":
        return self

    def future(self) -> "Future[Any]":
        return self._future


class ReadingActor:
    """An actor whose worker reads data and hangs."""

    def __init__(self) -> None:
        self.begin, self.status, self.why_hung = Answer(Presence("127.0.0.1:1", 1)), Answer(), Answer(WORDS)


class PlayedPool:
    def take(self, order: StartGang, node_id: str, number: int, *, fresh: bool) -> Process:
        return Process("worker", ReadingActor(), node_id, Shape())

    def is_up(self, process: Process, pid: int, gpu_ids: tuple[str, ...]) -> None:
        pass


def test_a_worker_that_hangs_before_it_trains_is_noticed() -> None:
    order = StartGang(spec=JobSpec(recovery=RecoverySpec(hang_timeout_s=0.1)))
    gang = Gang(PlayedPool(), order, epoch=1)  # type: ignore[arg-type]
    gang.take(0, "node")
    deadline = time.monotonic() + 10
    assert gang.next_event([], deadline) == Taken(0)
    assert gang.next_event([], deadline) == CameUp(0, "127.0.0.1:1")
    reading = Member(0, "node", Reading(), "127.0.0.1:1")
    assert gang.next_event([reading], deadline) == Hung(0, f"worker 0 {WORDS}")
