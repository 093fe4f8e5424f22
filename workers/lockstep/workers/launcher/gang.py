"""The workers of an attempt as the launcher holds them, and what happens to them as a stream of events."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from ray.exceptions import ActorUnavailableError

from lockstep.v1.internal_service_pb2 import GangChanged, StartGang
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import FIRST_FACTOR, Presence, Status, name_of
from lockstep.workers.engine import awake
from lockstep.workers.failures import is_with_node, job_error
from lockstep.workers.launcher.fleet import ANSWER_TIMEOUT_S, ASK_AGAIN_AFTER_S, Process
from lockstep.workers.launcher.pool import Pool

CHECKS_PER_TIMEOUT = 4
LONGEST_CHECK_S = 5.0
COLD_ANSWER_TIMEOUT_S = 20.0
"""How long a spare worker that has just been made may take to answer before a new one is made."""

log = structlog.get_logger()


class PlacementFailed(Exception):
    """Not all workers of a gang that begins came up."""


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        number: its number within the attempt, in the order of creation.
        process: that it runs in.
        address: where it listens for the others; empty until it is up.
        is_prepared: it has read the data, and may train with the others.
        hardware: what its bits depend on, in words; empty until it has read the data.
        data: the digest of its data; empty likewise.
        has_ended: it trained no more when this launcher took it over; its status tells why.
        rank: its rank in the newest generation; None while it is in none.
        since: the generation in which it first was; None before that.
        is_leaving: it was told to go.
        is_surplus: it was, since the gang shall have fewer workers or others; those that stay go on without it.
        kill_by: when it is killed, unless it leaves or comes up before.
        hung_because: why it was killed, if it hung.
        hang_asked_at: since when it owes a sign of life.
    """

    number: int
    process: Process
    address: str = ""
    is_prepared: bool = False
    hardware: str = ""
    data: str = ""
    has_ended: bool = False
    rank: int | None = None
    since: int | None = None
    is_leaving: bool = False
    is_surplus: bool = False
    kill_by: float | None = None
    hung_because: str = ""
    hang_asked_at: float | None = None

    @property
    def node_id(self) -> str:
        return self.process.node_id

    @property
    def is_up(self) -> bool:
        return bool(self.address)

    @property
    def is_training(self) -> bool:
        return self.rank is not None


@dataclass(frozen=True)
class MemberUp:
    """A worker's process is there."""

    member: Member
    address: str
    pid: int
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemberStatus:
    """A worker has something to tell."""

    member: Member
    status: Status


@dataclass(frozen=True)
class MemberDied:
    """A worker's process is gone; with its node, it may be."""

    member: Member
    error: JobError
    is_with_node: bool = False


@dataclass(frozen=True)
class Hung:
    """A worker gets nowhere."""

    member: Member
    why: str


@dataclass(frozen=True)
class StopAsked:
    """The coordinator wants the gang to stop; see the contract's StopGang."""

    grace_s: float
    keep: bool
    refusable: int = 0


@dataclass(frozen=True)
class ResizeAsked:
    """The coordinator wants the gang to have other workers: one on each of these nodes."""

    revision: int
    node_ids: tuple[str, ...]


Event = MemberUp | MemberStatus | MemberDied | Hung | StopAsked | ResizeAsked


@dataclass
class Gang:
    """The workers of one attempt.

    Args:
        pool: where processes come from.
        order: what they run.
        epoch: the coordinator's.
        generation: the newest one that exists.

    Attributes:
        members: all that are there, leaving ones among them; those of the newest generation in the order of ranks.
        events: what happens to them.
    """

    pool: Pool
    order: StartGang
    epoch: int
    generation: int = 0
    members: list[Member] = field(default_factory=list)
    events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)
    _come: deque[Event] = field(default_factory=deque)
    _created: int = 0
    _next_check: float = 0.0

    @property
    def staying(self) -> list[Member]:
        """Members that were not told to go."""
        return [member for member in self.members if not member.is_leaving]

    @property
    def ready(self) -> list[Member]:
        """Those of them that can be in the next generation."""
        return [member for member in self.staying if member.is_prepared and not member.has_ended]

    @property
    def training(self) -> list[Member]:
        """Members of the newest generation."""
        return [member for member in self.staying if member.is_training]

    def add(self, node_id: str, *, fresh: bool = False) -> Member:
        """Take in a worker; events tell how it fares.

        Args:
            node_id: where.
            fresh: in a new process.
        """
        number, ordered_at = self._created, time.time()
        self._created += 1
        member = Member(number, self.pool.take(self.order, node_id, number, fresh=fresh))
        if member.process.is_reused:
            patience_s = ANSWER_TIMEOUT_S if member.process.is_warm else COLD_ANSWER_TIMEOUT_S
            member.kill_by = awake.now() + patience_s
        self.members.append(member)
        order_bytes = self.order.SerializeToString()

        def took(presence: Presence) -> None:
            self.events.put(MemberUp(member, *presence))

        self._call(member, member.process.actor.begin, order_bytes, number, ordered_at, took=took)
        self._ask_for_status(member, None)
        return member

    def adopt(self, member: Member) -> None:
        """Look after a worker that an earlier launcher has given its assignment."""
        self.members.append(member)
        self._created = max(self._created, member.number + 1)
        self._ask_for_status(member, None)

    def form(self, why: str) -> None:
        """Begin the next generation with all that are prepared and stay, first those that have been there for longest.

        So rank 0 has the state if anyone has, and the order of survivors is their old one.
        """
        self.generation += 1
        ready = self.ready
        for member in ready:
            member.since = member.since or self.generation
        ready.sort(key=lambda member: (member.since, member.number))
        addresses = [member.address for member in ready]
        for member in self.members:
            member.rank = member.rank if member.has_ended else None  # its end still tells what became of its rank
        for rank, member in enumerate(ready):
            member.rank = rank
            self.tell(member, "form", self.epoch, self.generation, rank, addresses, why)
        log.info(
            "generation formed",
            job_id=self.order.job_id,
            attempt=self.order.attempt,
            generation=self.generation,
            workers=[member.number for member in ready],
        )

    def tell(self, member: Member, order: str, *arguments: Any) -> None:
        """Give a worker an order, which has the same effect when it comes twice."""
        method = getattr(member.process.actor, order)
        self._call(member, method, self._name(member), *arguments, took=lambda nothing: None, tell_death=False)

    def why_unlike(self, member: Member) -> str:
        """Why the bits of a worker would differ from those of the others that are prepared, in words; empty if not."""
        others = [other for other in self.staying if other.is_prepared and other is not member]
        classes, theirs = {other.hardware for other in others}, {other.data for other in others}
        if others and member.hardware not in classes:
            return differs(member.hardware, classes)
        if others and member.data not in theirs:
            kind = self.order.spec.data.WhichOneof("kind") or ""
            return (
                f"data.{kind}: its data is not that of the others, so that its bits would differ (the SHA-256 of its "
                f"examples is {member.data or 'unknown'}, theirs is {' and '.join(sorted(theirs)) or 'unknown'}); "
                "scale the job to have it tried again once the data there is the same"
            )
        return ""

    def part(self, done: Member) -> None:
        """One that trained is done, and so are all: whoever waits for it in a later generation waits in vain."""
        for member in self.staying:
            if not member.is_training:
                self.remove(member)
                continue
            member.is_leaving = True
            if member is not done:
                self.tell(member, "dismiss", self.epoch)

    def kill(self, member: Member) -> None:
        """End a worker's process; an event tells when it is gone."""
        self.pool.end(member.process)

    def remove(self, member: Member, ended: Status | None = None) -> None:
        """Forget a worker that has ended or died, and free what it held.

        Args:
            member: the worker.
            ended: what it has told at its end; its process may be good for another job.
        """
        if member in self.members:
            self.members.remove(member)
            if ended is not None and ended.is_reusable:
                self.pool.give_back(member.process, ended.memory_bytes, has_left_log=ended.has_left_log)
            else:
                self.pool.end(member.process)

    def remove_all(self) -> None:
        """Leave nothing behind."""
        for member in list(self.members):
            self.remove(member)

    def next_event(self, deadline: float | None) -> Event | None:
        """The next event; None when the deadline has passed."""
        while True:
            now = awake.now()
            if now >= self._next_check:
                self._check_for_hangs(now)
            until = self._next_check if deadline is None else min(deadline, self._next_check)
            try:
                event = self._come.popleft() if self._come else self.events.get(timeout=max(0.0, until - now))
            except queue.Empty:
                if deadline is not None and awake.now() >= deadline:
                    return None
                continue
            if isinstance(event, MemberUp):
                self.pool.is_up(event.member.process, event.pid, event.gpu_ids)
            if isinstance(event, StopAsked | ResizeAsked) or event.member in self.members:
                return event

    def deaths_that_came(self) -> list[MemberDied]:
        """Deaths among the events that are still to be taken; those of members that are removed are none any more."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._come.append(self.events.get_nowait())
        return [event for event in self._come if isinstance(event, MemberDied) and event.member in self.members]

    def _check_for_hangs(self, now: float) -> None:
        """Ask everyone that is up for a sign of life, and see who owes one for too long."""
        timeout_s = self.order.spec.recovery.hang_timeout_s
        every_s = min(LONGEST_CHECK_S, timeout_s / CHECKS_PER_TIMEOUT)
        self._next_check = now + every_s
        owing: list[tuple[Member, float, float]] = []
        for member in self.staying:
            if not member.is_up:
                continue
            if member.hang_asked_at is None:
                member.hang_asked_at = now
                why_hung = member.process.actor.why_hung
                self._call(member, why_hung, self._name(member), took=self._heard(member), tell_death=False)
            elif not member.hung_because:
                # Whoever reads data may be in code that lets no other thread run.
                allowed_s = timeout_s if member.is_training else FIRST_FACTOR * timeout_s
                owing.append((member, now - member.hang_asked_at, allowed_s))
        overdue_on = {member.node_id for member, silent_s, allowed_s in owing if silent_s > allowed_s}
        # Of a node that went, all are silent; one may have been asked a moment later than another.
        silent = [each for each in owing if each[0].node_id in overdue_on and each[1] > each[2] - every_s]
        least_s = min((min(silent_s, allowed_s) for _, silent_s, allowed_s in silent), default=0.0)
        for member, _, _ in silent:
            self.events.put(Hung(member, f"worker {member.number} did not answer for {least_s:.0f} s"))

    def _heard(self, member: Member) -> Any:
        def heard(why: str | None) -> None:
            member.hang_asked_at = None
            if why is not None and not member.hung_because:
                self.events.put(Hung(member, f"worker {member.number} {why}"))

        return heard

    def _ask_for_status(self, member: Member, known: Status | None) -> None:
        def told(status: Status) -> None:
            if status != known:
                self.events.put(MemberStatus(member, status))
            if not status.has_ended:
                self._ask_for_status(member, status)

        self._call(member, member.process.actor.status, self._name(member), known, took=told)

    def _name(self, member: Member) -> str:
        return name_of(self.order, member.number)

    def _call(self, member: Member, method: Any, *arguments: Any, took: Any, tell_death: bool = True) -> None:
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
                self.events.put(MemberDied(member, job_error(error, member.number), is_with_node(error)))

        def call() -> None:
            if member in self.members:
                method.remote(*arguments).future().add_done_callback(ended)

        call()


def changed(order: StartGang, revision: int, members: Iterable[Member], running: int, message: str = "") -> GangChanged:
    """Who is in a gang now, as the coordinator is told."""
    return GangChanged(
        job_id=order.job_id,
        attempt=order.attempt,
        revision=revision,
        node_ids=[member.node_id for member in sorted(members, key=lambda member: member.is_leaving)],
        running_workers=running,
        message=message,
    )


def differs(hardware: str, theirs: Iterable[str]) -> str:
    """That a worker's hardware is not that of the others, in words."""
    return f"it has {hardware}, the others have {' and '.join(sorted(theirs))}, so that its bits could differ"
