"""Runs an attempt: hears what happens, asks what has to be done, and does it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog

from lockstep.v1.internal_service_pb2 import (
    ConnectLauncherRequest,
    GangChanged,
    GangStarted,
    GangStopped,
    ResizeGang,
    StartGang,
    StopGang,
)
from lockstep.workers import awake_clock
from lockstep.workers.launcher.attempt.advance import Step, advance, begin, take_over
from lockstep.workers.launcher.attempt.commands import (
    Command,
    Discard,
    Dismiss,
    Form,
    GiveBack,
    Kill,
    Log,
    Stop,
    Take,
    TellChanged,
    TellStarted,
    TellStopped,
)
from lockstep.workers.launcher.attempt.events import LauncherFailed, ResizeAsked, StopAsked
from lockstep.workers.launcher.attempt.state import Attempt, Plan
from lockstep.workers.launcher.attempt.turn import changed
from lockstep.workers.launcher.fleet import Process
from lockstep.workers.launcher.gang import Gang
from lockstep.workers.launcher.pool import Pool

log = structlog.get_logger()


class TakenOver(NamedTuple):
    """Workers of an earlier launcher to go on with.

    Attributes:
        attempt: as they have told.
        processes: that they run in, by number.
        is_whole: all workers of their newest generation are among them.
    """

    attempt: Attempt
    processes: Mapping[int, Process]
    is_whole: bool


class AttemptRunner:
    """One attempt, run by a thread of its own that waits for events.

    Args:
        pool: where processes come from.
        order: what to run.
        tell: sends a fact to the coordinator.
        epoch: the coordinator's.
        taken_over: workers of an earlier launcher; a new gang is started when there are none.
    """

    def __init__(
        self,
        pool: Pool,
        order: StartGang,
        tell: Callable[[ConnectLauncherRequest], None],
        epoch: int,
        taken_over: TakenOver | None = None,
    ) -> None:
        self.order = order
        self._tell, self._taken_over = tell, taken_over
        self._attempt = Attempt(Plan.of(order)) if taken_over is None else taken_over.attempt
        self._gang = Gang(pool, order, epoch)
        self._thread = threading.Thread(target=self._run, name=f"{order.job_id}/{order.attempt}", daemon=True)
        self._log = log.bind(job_id=order.job_id, attempt=order.attempt)

    # Called by the launcher.

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self, order: StopGang) -> None:
        """Ask the gang to stop at a step boundary, and kill it after a grace."""
        self._gang.events.put(StopAsked(order.grace_s, order.keep, order.refusable))

    def resize(self, order: ResizeGang) -> None:
        """Give the gang other workers."""
        self._gang.events.put(ResizeAsked(order.revision, tuple(order.node_ids)))

    def is_alive(self) -> bool:
        """Whether something of the attempt is left."""
        return self._thread.is_alive()

    def inventory(self) -> GangChanged:
        """Who is in the gang now; only before `start`, for a gang that was taken over."""
        told = self._changed(changed(self._attempt))
        if self._taken_over is None or not self._taken_over.is_whole:
            told.running_workers = 0
        return told

    # The attempt's thread.

    def _run(self) -> None:
        try:
            self._take(self._first_step())
            while not self._attempt.has_ended:
                event = self._gang.next_event(self._attempt.members, self._attempt.deadline)
                self._take(advance(self._attempt, event, awake_clock.now()))
        except Exception as failure:
            self._log.exception("the attempt failed in the launcher")
            failed = LauncherFailed(f"{type(failure).__name__}: {failure}")
            try:
                self._gang.discard_all()  # those among them that were just taken
            finally:
                self._take(advance(self._attempt, failed, awake_clock.now()))

    def _first_step(self) -> Step:
        if self._taken_over is None:
            return begin(Plan.of(self.order), self.order.node_ids, awake_clock.now())
        for number, process in self._taken_over.processes.items():
            self._gang.adopt(number, process)
        return take_over(self._attempt, awake_clock.now(), is_whole=self._taken_over.is_whole)

    def _take(self, step: Step) -> None:
        attempt, commands = step
        self._carry_out(commands)
        self._attempt = attempt  # not before: what cannot be done has not become so

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Take(number, node_id, is_fresh):
                    self._gang.take(number, node_id, is_fresh=is_fresh)
                case Form(generation, numbers, addresses, why):
                    self._gang.form(generation, numbers, addresses, why)
                case Stop(numbers, keep, refusable):
                    self._gang.stop(numbers, keep, refusable)
                case Dismiss(number):
                    self._gang.dismiss(number)
                case Kill(number):
                    self._gang.kill(number)
                case Discard(number):
                    self._gang.discard(number)
                case GiveBack(number, memory_bytes, has_left_log):
                    self._gang.give_back(number, memory_bytes, has_left_log=has_left_log)
                case TellStarted():
                    started = GangStarted(job_id=self.order.job_id, attempt=self.order.attempt)
                    self._tell(ConnectLauncherRequest(gang_started=started))
                case TellChanged():
                    self._tell(ConnectLauncherRequest(gang_changed=self._changed(command)))
                case TellStopped():
                    self._tell(ConnectLauncherRequest(gang_stopped=self._stopped(command)))
                case Log(line, facts, is_warning):
                    (self._log.warning if is_warning else self._log.info)(line, **facts)

    # In the words of the contract.

    def _changed(self, told: TellChanged) -> GangChanged:
        return GangChanged(
            job_id=self.order.job_id,
            attempt=self.order.attempt,
            revision=told.revision,
            node_ids=told.node_ids,
            running_workers=told.running_workers,
            message=told.message,
            refused_node_ids=told.refused_node_ids,
            refuses_stop=told.refuses_stop,
        )

    def _stopped(self, told: TellStopped) -> GangStopped:
        stopped = GangStopped(job_id=self.order.job_id, attempt=self.order.attempt, is_too_small=told.is_too_small)
        if told.error is not None:
            stopped.error.CopyFrom(told.error)
        return stopped
