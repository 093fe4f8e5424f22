"""A fleet without Ray: its own accounts are real, its actors are played."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from ray.exceptions import ActorDiedError

from lockstep.workers.calls import Description, Rest
from lockstep.workers.launcher.fleet import Fleet, Process, Shape
from lockstep.workers.launcher.log_sweeps import LogSweeps

WAIT_S = 20.0


class Asked(NamedTuple):
    """A call to an actor that has not answered yet."""

    method: str
    arguments: tuple[Any, ...]
    answer: "Future[Any]"

    def future(self) -> "Future[Any]":
        return self.answer


class Method(NamedTuple):
    """A method of an actor's handle."""

    remote: Callable[..., Asked]


class PlayedActor:
    """The handle of a worker that answers when the test wants.

    Attributes:
        asked: calls that it owes an answer, the oldest first.
        is_killed: somebody has ended it.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.is_killed = False
        self._changed = threading.Condition()

    def __getattr__(self, name: str) -> Method:
        return Method(lambda *arguments: self._called(name, arguments))

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Asked:
        with self._changed:
            self.asked.append(Asked(name, arguments, Future()))
            self._changed.notify_all()
            return self.asked[-1]

    def answers(self, memory_bytes: int = 100, data_bytes: int = 10, pid: int = 7) -> Asked:
        """Answer the oldest call; returns it."""
        asked = self.asked.pop(0)
        asked.answer.set_result(Rest(pid, memory_bytes, data_bytes))
        return asked

    def fails(self, error: Exception) -> None:
        """Have the oldest call end with an error."""
        self.asked.pop(0).answer.set_exception(error)

    def dies(self) -> None:
        """Be gone."""
        while self.asked:
            self.fails(ActorDiedError())

    def wait_until_asked(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked, WAIT_S)


class PlayedFleet(Fleet):
    """Nodes with so many CPUs and GPUs, and the workers of a launcher before.

    Attributes:
        actors: all that were ever made.
        left: what `inventory` finds.
    """

    def __init__(self, usable: dict[str, tuple[float, float]]) -> None:
        self.actors: list[PlayedActor] = []
        self._lock = threading.Lock()
        self._held, self._usable, self._taken_by_others = {}, usable, {}
        self.left: list[Description | None] = []
        self.log_sweeps = LogSweeps("tests")  # never begun

    def create(self, shape: Shape, node_id: str) -> Process:
        self.actors.append(PlayedActor())
        process = Process(f"worker-{len(self.actors)}", self.actors[-1], node_id, shape)
        self._hold(process, 1)
        return process

    def inventory(self, epoch: int, coordinator_address: str) -> list[tuple[Process | None, Any, Description | None]]:
        self.actors += [PlayedActor() for _ in self.left]
        return [
            (self._adopt(f"left-{number}", actor, told), actor, told)
            for number, (actor, told) in enumerate(zip(self.actors, self.left, strict=True))
        ]

    def kill(self, actor: Any) -> None:
        actor.is_killed = True
        actor.dies()
