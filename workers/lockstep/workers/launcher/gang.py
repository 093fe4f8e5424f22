"""The workers of an attempt as the launcher holds them: what is said to them, and what is heard from them as events."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ray.exceptions import ActorUnavailableError

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers import awake_clock
from lockstep.workers.calls import HANG_FIRST_FACTOR, Presence, Status, name_of
from lockstep.workers.failures import error_of_call, is_with_node
from lockstep.workers.launcher.attempt.events import (
    CameUp,
    Death,
    Died,
    Event,
    Hung,
    ResizeAsked,
    StopAsked,
    Taken,
    TimeIsUp,
    Told,
)
from lockstep.workers.launcher.attempt.state import Coming, Member
from lockstep.workers.launcher.fleet import ASK_AGAIN_AFTER_S, Process
from lockstep.workers.launcher.pool import Pool

CHECKS_PER_TIMEOUT = 4
LONGEST_CHECK_S = 5.0


class _Answered(NamedTuple):
    """A process has answered; the pool is told by the attempt's thread, for Ray waits for those that call back."""

    up: CameUp
    process: Process
    presence: Presence


class Gang:
    """The processes of one attempt's workers. Used by the attempt's thread; what workers say comes from Ray's.

    Args:
        pool: where processes come from.
        order: what they run.
        epoch: the coordinator's.

    Attributes:
        events: what happens to them, and what the coordinator asks.
    """

    def __init__(self, pool: Pool, order: StartGang, epoch: int) -> None:
        self._pool, self._order, self._epoch = pool, order, epoch
        self.events: queue.SimpleQueue[Event | _Answered] = queue.SimpleQueue()
        self._come: deque[Event | _Answered] = deque()
        self._processes: dict[int, Process] = {}
        self._asked_at: dict[int, float] = {}  # since when workers owe a sign of life
        self._next_check = 0.0

    # What is done with them.

    def take(self, number: int, node_id: str, *, is_fresh: bool = False) -> None:
        """Find a process for a worker and have it begin; events tell how it fares, `Taken` before all others.

        Args:
            number: of the worker.
            node_id: where it shall be.
            is_fresh: in a new process.
        """
        ordered_at = time.time()
        process = self._pool.take(self._order, node_id, number, fresh=is_fresh)
        self._processes[number] = process
        self._come.append(Taken(number, process.is_reused, process.is_warm))

        def took(presence: Presence) -> None:
            self.events.put(_Answered(CameUp(number, presence.address), process, presence))

        self._call(number, process.actor.begin, self._order.SerializeToString(), number, ordered_at, took=took)
        self._ask_for_status(number, None)

    def adopt(self, number: int, process: Process) -> None:
        """Look after a worker that an earlier launcher has given its assignment."""
        self._processes[number] = process
        self._ask_for_status(number, None)

    def form(self, generation: int, numbers: Iterable[int], addresses: Iterable[str], why: str) -> None:
        """Tell workers, by rank, of the next generation."""
        listeners = list(addresses)
        for rank, number in enumerate(numbers):
            self._tell(number, "form", generation, rank, listeners, why)

    def stop(self, numbers: Iterable[int], keep: bool, refusable: int) -> None:
        """Tell workers to stop at a step boundary."""
        for number in numbers:
            self._tell(number, "stop", keep, refusable)

    def dismiss(self, number: int) -> None:
        """Tell a worker to leave."""
        self._tell(number, "dismiss")

    def kill(self, number: int) -> None:
        """End a worker's process; an event tells when it is gone."""
        self._pool.end(self._processes[number])

    def discard(self, number: int) -> None:
        """End a worker's process, or what is left of it, and hear no more of it; harmless when there is none."""
        self._asked_at.pop(number, None)
        process = self._processes.pop(number, None)
        if process is not None:
            self._pool.end(process)

    def give_back(self, number: int, memory_bytes: int, *, has_left_log: bool) -> None:
        """Give a worker's process back as good as new, and hear no more of the worker."""
        self._asked_at.pop(number, None)
        self._pool.give_back(self._processes.pop(number), memory_bytes, has_left_log=has_left_log)

    def discard_all(self) -> None:
        """Leave nothing behind."""
        for number in list(self._processes):
            self.discard(number)

    # What is heard from them.

    def next_event(self, members: Iterable[Member], deadline: float | None) -> Event:
        """The next event; that the time is up when the deadline has passed.

        Args:
            members: the workers as they stand; those that are up are asked for signs of life.
            deadline: as awake.now() tells; None for never.
        """
        while True:
            now = awake_clock.now()
            if now >= self._next_check:
                self._check_for_hangs(members, now)
            until = self._next_check if deadline is None else min(deadline, self._next_check)
            try:
                event = self._come.popleft() if self._come else self.events.get(timeout=max(0.0, until - now))
            except queue.Empty:
                if deadline is not None and awake_clock.now() >= deadline:
                    return TimeIsUp()
                continue
            if isinstance(event, _Answered):
                self._pool.is_up(event.process, event.presence.pid, event.presence.gpu_ids)
                event = event.up
            match event:
                case StopAsked() | ResizeAsked():
                    return event
                case Died(first) if first.number in self._processes:
                    return Died(first, self._deaths_that_came())
                case Taken(number) | CameUp(number) | Told(number) | Hung(number) if number in self._processes:
                    return event
                case _:
                    pass  # of one that is gone

    def is_asked(self, number: int) -> bool:
        """Whether a worker owes a sign of life."""
        return number in self._asked_at

    def _deaths_that_came(self) -> tuple[Death, ...]:
        """Deaths among the events that are still to be taken."""
        while not self.events.empty():
            self._come.append(self.events.get_nowait())
        deaths = (event.first for event in self._come if isinstance(event, Died))
        return tuple(death for death in deaths if death.number in self._processes)

    def _check_for_hangs(self, members: Iterable[Member], now: float) -> None:
        """Ask everyone that is up for a sign of life, and see who owes one for too long."""
        timeout_s = self._order.spec.recovery.hang_timeout_s
        every_s = min(LONGEST_CHECK_S, timeout_s / CHECKS_PER_TIMEOUT)
        self._next_check = now + every_s
        owing: list[tuple[Member, float, float]] = []
        for member in members:
            if member.is_leaving or isinstance(member.stage, Coming):
                continue
            asked_at = self._asked_at.get(member.number)
            if asked_at is None:
                self._ask_for_life(member.number, now)
            elif member.killed_because is None:
                # Whoever reads data may be in code that lets no other thread run.
                allowed_s = timeout_s if member.is_ranked else HANG_FIRST_FACTOR * timeout_s
                owing.append((member, now - asked_at, allowed_s))
        overdue_on = {member.node_id for member, silent_s, allowed_s in owing if silent_s > allowed_s}
        # Of a node that went, all are silent; one may have been asked a moment later than another.
        silent = [each for each in owing if each[0].node_id in overdue_on and each[1] > each[2] - every_s]
        least_s = min((min(silent_s, allowed_s) for _, silent_s, allowed_s in silent), default=0.0)
        for member, _, _ in silent:
            self.events.put(Hung(member.number, f"worker {member.number} did not answer for {least_s:.0f} s"))

    def _ask_for_life(self, number: int, now: float) -> None:
        def heard(why: str | None) -> None:
            self._asked_at.pop(number, None)
            if why is not None:
                self.events.put(Hung(number, f"worker {number} {why}"))

        self._asked_at[number] = now
        why_hung = self._processes[number].actor.why_hung
        self._call(number, why_hung, self._name(number), took=heard, tell_death=False)

    def _ask_for_status(self, number: int, known: Status | None) -> None:
        def told(status: Status) -> None:
            if status != known:
                self.events.put(Told(number, status))
            if not status.has_ended:
                self._ask_for_status(number, status)

        process = self._processes.get(number)
        if process is not None:
            self._call(number, process.actor.status, self._name(number), known, took=told)

    def _name(self, number: int) -> str:
        return name_of(self._order, number)

    def _tell(self, number: int, order: str, *arguments: Any) -> None:
        """Give a worker an order, which has the same effect when it comes twice."""
        method = getattr(self._processes[number].actor, order)
        self._call(
            number, method, self._name(number), self._epoch, *arguments, took=lambda nothing: None, tell_death=False
        )

    def _call(
        self, number: int, method: Any, *arguments: Any, took: Callable[[Any], None], tell_death: bool = True
    ) -> None:
        """Call a worker; when that has ended, hand the value on, or tell that the worker died.

        A worker that cannot be reached is not dead: the call is made again. If that goes on, the sign of life that
        it owes is overdue.
        """

        def ended(future: Any) -> None:
            error = future.exception()
            if error is None:
                took(future.result())
            elif isinstance(error, ActorUnavailableError):
                again = threading.Timer(ASK_AGAIN_AFTER_S, call)
                again.daemon = True
                again.start()
            elif tell_death:
                self.events.put(Died(Death(number, error_of_call(error, number), is_with_node(error))))

        def call() -> None:
            if number in self._processes:
                method.remote(*arguments).future().add_done_callback(ended)

        call()
