"""A pool of workers for attempts: actors whose life is a script of the test."""

import queue
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, NamedTuple

from ray.exceptions import ActorDiedError

from lockstep.v1.internal_service_pb2 import ConnectLauncherRequest, GangChanged, GangStopped, StartGang
from lockstep.v1.job_pb2 import JobError
from lockstep.v1.launcher_pb2 import LauncherSettings
from lockstep.workers.calls import Description, Presence, Status
from lockstep.workers.engine import ENGINE_VERSION
from lockstep.workers.launcher.fleet import Process, Shape
from lockstep.workers.launcher.launcher import Launcher, Lifeline
from lockstep.workers.launcher.runner import AttemptRunner

WAIT_S = 20.0
HARDWARE = "cpu AVX2"
DATA = "0123456789abcdef"


class Call:
    """What an actor's method returns."""

    def __init__(self) -> None:
        self.answer: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.answer


class Method(NamedTuple):
    """A method of an actor's handle."""

    remote: Callable[..., Call]


class ScriptedActor:
    """The handle of a worker that says what the test wants.

    Attributes:
        orders: what it was told to do, as (method, arguments).
        is_killed: somebody has ended it.
        failure: what calls end with from now on; None while it answers.
    """

    def __init__(self, fleet: "ScriptedFleet", number: int, node_id: str) -> None:
        self.number, self.node_id = number, node_id
        self.orders: list[tuple[str, tuple[Any, ...]]] = []
        self.is_killed = False
        self.failure: Exception | None = None
        self._fleet = fleet
        self._status = Status()
        self._waiting: list[tuple[Call, Status | None]] = []

    def __getattr__(self, name: str) -> Method:
        return Method(lambda *arguments: self._called(name, *arguments))

    def _called(self, name: str, *arguments: Any) -> Call:
        call = Call()
        with self._fleet.changed:
            failure = self.failure
            if failure is None and name == "status" and arguments[1] == self._status:
                self._waiting.append((call, arguments[1]))
                return call
            self.orders.append((name, arguments))
            self._fleet.changed.notify_all()
        if failure is not None:
            call.answer.set_exception(failure)
        else:
            presence = Presence(f"address-{self.number}", pid=1 + self.number)
            hung = self._fleet.hanging.get(self.number)
            call.answer.set_result({"begin": presence, "status": self._status, "why_hung": hung}.get(name))
        return call

    def tell(self, **changes: Any) -> None:
        """Tell another status."""
        with self._fleet.changed:
            self._status = self._status._replace(**changes)
            waiting, self._waiting = self._waiting, []
        for call, _ in waiting:
            call.answer.set_result(self._status)

    def prepare(self, hardware: str = HARDWARE, data: str = DATA) -> None:
        """Have read the data."""
        self.tell(is_prepared=True, hardware=hardware, data=data)

    def finish(self) -> None:
        """Be done with training, and not gone yet."""
        self.tell(has_finished=True)

    def end(self, error: JobError | None = None, *, is_reusable: bool = False, was_dismissed: bool = False) -> None:
        """Train no more."""
        error_bytes = b"" if error is None else error.SerializeToString()
        self.tell(
            has_ended=True,
            error_bytes=error_bytes,
            is_reusable=is_reusable,
            was_dismissed=was_dismissed,
            has_lost_peer=error is not None and error.reason == "WORKER_LOST",
        )

    def fail(self, failure: Exception | None) -> None:
        """Have all calls end with an error, those under way too; with None, answer again."""
        with self._fleet.changed:
            self.failure = failure
            waiting, self._waiting = (self._waiting, []) if failure is not None else ([], self._waiting)
        for call, _ in waiting:
            call.answer.set_exception(failure)

    def die(self) -> None:
        """Be gone."""
        self.fail(ActorDiedError())

    def told(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of one method, behind the name of the assignment."""
        return [arguments[1:] for called, arguments in self.orders if called == name]


class ScriptedFleet:
    """A pool of scripted actors, and the fleet that it takes them from.

    Attributes:
        actors: all that were ever created, by number.
        given_back: names of those whose processes were given back.
        warm: whether the next one that is taken was there before.
        failures: what calls to actors end with from the beginning, by number.
        hanging: why those hang that do, by number.
    """

    def __init__(self) -> None:
        self.actors: list[ScriptedActor] = []
        self.given_back: list[str] = []
        self.warm = False
        self.failures: dict[int, Exception] = {}
        self.hanging: dict[int, str] = {}
        self.changed = threading.Condition()

    def create(self, node_id: str) -> Process:
        with self.changed:
            number = len(self.actors)
            self.actors.append(ScriptedActor(self, number, node_id))
            self.actors[-1].failure = self.failures.get(number)
            self.changed.notify_all()
        return Process(f"worker-{number}", self.actors[-1], node_id, Shape())

    def take(self, order: StartGang, node_id: str, number: int, *, fresh: bool = False) -> Process:
        process = self.create(node_id)
        process.is_reused = process.is_warm = self.warm and not fresh
        return process

    def is_up(self, process: Process, pid: int, gpu_ids: tuple[str, ...]) -> None:
        process.pid = pid

    def give_back(self, process: Process, memory_bytes: int, *, has_left_log: bool = False) -> None:
        self.given_back.append(process.name)

    def adopt(self, process: Process, assignment: str) -> None:
        pass

    def end(self, process: Process) -> None:
        with self.changed:
            process.actor.is_killed = True
            self.changed.notify_all()
        process.actor.die()

    def wait_for(self, is_so: Callable[[], Any]) -> None:
        """Wait until the actors were told something."""
        with self.changed:
            assert self.changed.wait_for(is_so, WAIT_S), [(actor.number, actor.orders) for actor in self.actors]


class Stage:
    """An attempt on a scripted fleet, and what it says to the coordinator."""

    def __init__(self, workers: int = 2, min_workers: int = 1, hang_timeout_s: float = 30.0) -> None:
        self.fleet = ScriptedFleet()
        self.facts: queue.SimpleQueue[ConnectLauncherRequest] = queue.SimpleQueue()
        self.order = StartGang(job_id="job-1", attempt=1, node_ids=[f"node-{n}" for n in range(workers)])
        self.order.spec.resources.workers = workers
        self.order.spec.resources.min_workers = min_workers
        self.order.spec.recovery.hang_timeout_s = hang_timeout_s

    def attempt(self) -> AttemptRunner:
        """Make an attempt that begins by creating its workers."""
        return AttemptRunner(self.fleet, self.order, self.facts.put, 1)  # type: ignore[arg-type]

    def begin(self) -> AttemptRunner:
        """Bring up a gang that trains."""
        attempt = self.attempt()
        attempt.start()
        self.fleet.wait_for(lambda: len(self.fleet.actors) == len(self.order.node_ids))
        for actor in self.fleet.actors:
            actor.prepare()
        self.fleet.wait_for(lambda: all(actor.told("form") for actor in self.fleet.actors))
        return attempt

    def take_over(
        self,
        generations: list[int],
        ranks: list[int],
        since: list[int],
        members: int = 3,
        dismissed: Collection[int] = (),
        ended: Collection[int] = (),
    ) -> AttemptRunner:
        """Take over workers of a launcher before, of which each says in which generation it is and since when.

        Args:
            dismissed: numbers of those that were told to leave.
            ended: numbers of those that train no more.
        """
        order_bytes = self.order.SerializeToString()
        workers = []
        for number, (generation, rank, first) in enumerate(zip(generations, ranks, since, strict=True)):
            process = self.fleet.create(f"node-{number}")
            about = Description(ENGINE_VERSION, 1.0, 0.0, "", process.node_id, 1 + number, order_bytes, number)
            told = about._replace(
                generation=generation,
                rank=rank,
                address=f"address-{number}",
                members=members,
                since=first,
                hardware=HARDWARE,
                data=DATA,
                has_ended=number in ended,
                is_dismissed=number in dismissed,
            )
            process.actor.prepare()
            if number in ended:
                process.actor.end(is_reusable=True, was_dismissed=number in dismissed)
            workers.append((process, told))
        launcher = Launcher(LauncherSettings(epoch=1), self.fleet, Lifeline())  # type: ignore[arg-type]
        launcher._facts = self.facts  # type: ignore[assignment]
        launcher._pool = self.fleet  # type: ignore[assignment]
        attempt = launcher._adopt(workers)
        attempt.start()
        return attempt

    def next_change(self, words: str) -> GangChanged:
        """The next change that says something."""
        while True:
            fact = self.facts.get(timeout=WAIT_S)
            assert not fact.HasField("gang_stopped"), fact
            if words in fact.gang_changed.message:
                return fact.gang_changed

    def end(self) -> GangStopped:
        """What it says when it is over."""
        while True:
            fact = self.facts.get(timeout=WAIT_S)
            if fact.HasField("gang_stopped"):
                return fact.gang_stopped

    def close(self) -> None:
        """End all workers, and so the attempt."""
        for actor in self.fleet.actors:
            if actor.failure is None:
                actor.end()
