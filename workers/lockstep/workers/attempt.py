"""One attempt of a job: place its gang, let it meet, watch it, and leave nothing behind."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import structlog

from lockstep.v1.internal_service_pb2 import ConnectLauncherRequest, GangStarted, GangStopped, StartGang
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.failures import first_cause, job_error
from lockstep.workers.fleet import Actor, Fleet

PLACEMENT_TIMEOUT_S = 60.0
"""How long all workers of a gang may take to come up before none of them stays."""
AFTERMATH_S = 10.0
"""How long the other ranks have to tell what they saw, once one has failed."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Ended:
    """A call to the actor of a rank has ended, with `value` or `error`."""

    rank: int
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class StopAsked:
    """The coordinator wants the gang to stop."""

    grace_s: float


class StoppedEarly(Exception):
    """The gang was told to stop before it trained."""


class Attempt:
    """One attempt, run by a thread of its own that waits for events.

    Args:
        fleet: where actors come from.
        order: what to run.
        tell: sends a fact to the coordinator.
    """

    def __init__(self, fleet: Fleet, order: StartGang, tell: Callable[[ConnectLauncherRequest], None]) -> None:
        self._fleet, self._order, self._tell = fleet, order, tell
        self._events: queue.SimpleQueue[Ended | StopAsked] = queue.SimpleQueue()
        self._actors: list[Actor] = []
        self._thread = threading.Thread(target=self._run, name=f"{order.job_id}/{order.attempt}", daemon=True)
        self._log = log.bind(job_id=order.job_id, attempt=order.attempt)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Ask the gang to stop at a step boundary, and kill it after `grace_s` seconds."""
        self._events.put(StopAsked(grace_s))

    def is_alive(self) -> bool:
        """Whether something of the attempt is left."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until nothing of the attempt is left."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        stopped = GangStopped(job_id=self._order.job_id, attempt=self._order.attempt)
        try:
            self._place()
            self._tell(
                ConnectLauncherRequest(gang_started=GangStarted(job_id=self._order.job_id, attempt=self._order.attempt))
            )
            error = self._watch(self._begin())
        except StoppedEarly:
            error = None
        except PlacementFailed as failure:
            error = JobError(reason="PLACEMENT_FAILED", message=str(failure))
        except Exception as failure:
            self._log.exception("the attempt failed in the launcher")
            error = job_error(failure, 0)
        finally:
            self._fleet.remove(self._order, self._actors)
        if error is not None:
            self._log.info("gang failed", reason=error.reason, message=error.message)
            stopped.error.CopyFrom(error)
        self._tell(ConnectLauncherRequest(gang_stopped=stopped))

    def _place(self) -> None:
        """Bring up all workers, or raise."""
        self._actors = self._fleet.create(self._order)
        waiting = set(range(len(self._actors)))
        for rank, actor in enumerate(self._actors):
            self._follow(rank, actor.__ray_ready__.remote())
        deadline = time.monotonic() + PLACEMENT_TIMEOUT_S
        while waiting:
            match self._next_event(deadline):
                case None:
                    raise PlacementFailed(
                        f"{len(waiting)} of {len(self._actors)} workers were not up after {PLACEMENT_TIMEOUT_S:.0f} s; "
                        "others on the cluster may hold what they need"
                    )
                case StopAsked():
                    raise StoppedEarly
                case Ended(error=None, rank=rank):
                    waiting.discard(rank)
                case Ended(error=error, rank=rank):
                    raise PlacementFailed(f"worker {rank} did not come up: {error}") from error

    def _begin(self) -> int:
        """Start training on every rank; returns how many there are."""
        addresses = ray.get([actor.listen.remote() for actor in self._actors], timeout=PLACEMENT_TIMEOUT_S)
        order_bytes = self._order.SerializeToString()
        for rank, actor in enumerate(self._actors):
            self._follow(rank, actor.train.remote(order_bytes, rank, addresses))
        return len(self._actors)

    def _watch(self, world_size: int) -> JobError | None:
        """Wait until every rank has ended; the error that the others follow from, if any failed."""
        running, errors = set(range(world_size)), list[JobError]()
        deadline: float | None = None
        was_stopped = False
        while running:
            match self._next_event(deadline):
                case None:
                    break
                case StopAsked(grace_s=grace_s):
                    was_stopped = True
                    deadline = time.monotonic() + grace_s
                    for actor in self._actors:
                        actor.stop.remote()
                case Ended(rank=rank, value=value, error=error):
                    running.discard(rank)
                    if value is not None or error is not None:
                        errors.append(JobError.FromString(value) if error is None else job_error(error, rank))
                        deadline = deadline or time.monotonic() + AFTERMATH_S
        return first_cause(errors) if errors and not was_stopped else None

    def _next_event(self, deadline: float | None) -> Ended | StopAsked | None:
        """The next event; None when the deadline has passed."""
        try:
            return self._events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _follow(self, rank: int, call: Any) -> None:
        """Put the end of a call to an actor among the events."""

        def ended(future: Any) -> None:
            error = future.exception()
            self._events.put(Ended(rank, error=error) if error else Ended(rank, value=future.result()))

        call.future().add_done_callback(ended)


class PlacementFailed(Exception):
    """Not all workers of a gang came up."""
