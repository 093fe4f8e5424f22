"""A fleet of plain processes that heals itself, as the launcher has its workers do, and dies where a test wants it."""

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lockstep.workers.engine import Activity, Group, Listener, Point, Progress, Stopped
from lockstep.workers.engine.exchange.group import Via
from lockstep.workers.engine.exchange.membership import Dismissed, Membership
from lockstep.workers.engine.exchange.transport import Endpoint, Transport
from lockstep.workers.engine.state.checkpoint import Checkpoint
from tests.support.processes import forking_context

KEY = b"secret"
RUN_TIMEOUT_S = 120.0


class Fault(NamedTuple):
    """Where a process kills itself.

    Attributes:
        member: which process, by its number in the fleet.
        activity: at the beginning of which activity; or "swap": in the middle of a collective, when one peer has a half
            of what it gets; or "uneven": when one peer has all of it and the others nothing.
        step: in which step.
        nth: at the how manieth time that it gets there, from 1.
    """

    member: int
    activity: Activity | str
    step: int
    nth: int = 1


class Recorder(Listener):
    """Records the result metrics as a coordinator would store them, and dies where the fault says.

    Args:
        faults: those of this process.
        send: tells the test something.
        membership: of this process.
        pause_after: the step after which it waits for a newer generation.
        pause_in: the activity at whose beginning it does so.
    """

    def __init__(
        self,
        faults: list[Fault],
        send: Callable[[Any], None],
        membership: Membership,
        pause_after: int | None,
        pause_in: Activity,
    ) -> None:
        self.faults, self.send = faults, send
        self.membership, self.pause_after, self.pause_in = membership, pause_after, pause_in
        self.points: list[Point] = []
        self.visits: dict[tuple[Any, int], int] = {}
        self.activity: Activity | None = None
        self.step = 0

    def entered(self, activity: Activity, step: int) -> None:
        self.activity, self.step = activity, step
        self.visit(activity, step)
        if self.pause_after is not None and activity is self.pause_in and step > self.pause_after:
            self.pause_after = None
            generation = self.membership.current.number
            self.send(("paused", step))
            while self.membership.current.number == generation:
                time.sleep(0.001)

    def visit(self, place: Activity | str, step: int) -> None:
        count = self.visits[place, step] = self.visits.get((place, step), 0) + 1
        for fault in self.faults:
            if (fault.activity, fault.step, fault.nth) == (place, step, count):
                os.kill(os.getpid(), signal.SIGKILL)

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]

    def unacknowledged(self) -> list[Point]:
        return self.points

    def take_over(self, points: list[Point]) -> None:
        self.points = points

    def healed(self, pause_s: float) -> None:
        if not math.isnan(pause_s):
            self.send(("healed", pause_s))

    def checkpointed(self, kept: Sequence[Checkpoint]) -> None:
        self.send(("kept", (os.getpid(), [checkpoint.step for checkpoint in kept])))

    def noted(self, words: str) -> None:
        self.send(("noted", words))


class Context(NamedTuple):
    """What a job function gets besides its arguments."""

    group: Group
    membership: Membership
    listener: Recorder


@dataclass
class Member:
    """One process of the fleet."""

    number: int
    process: Any
    pipe: Connection
    address: str
    outcome: Any = None
    messages: list[Any] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None


class Fleet:
    """Processes for one job after another; those that were killed are replaced for the next one.

    Args:
        device: where they compute.
        via: how tensors of the device travel between them.
    """

    def __init__(self, device: str = "cpu", via: Via = "auto") -> None:
        self._device, self._via = device, via
        self._context = forking_context()
        self._idle: list[tuple[Any, Connection, str]] = []
        self._generation = 0
        self.messages: list[Any] = []

    def run(
        self,
        world_size: int,
        function: Callable[..., Any],
        *args: Any,
        faults: list[Fault] | None = None,
        joins_after_step: int | None = None,
        joins_in: Activity = Activity.EXCHANGE,
    ) -> list[Any]:
        """Call function(context, *args) on every process, heal what dies; returns what the living ones returned.

        Args:
            joins_after_step: when the first process has done this step, it waits until one more joins.
            joins_in: at the beginning of which activity it waits.
        """
        members = [self._member(number) for number in range(world_size)]
        for member in members:
            mine = [fault for fault in faults or [] if fault.member == member.number]
            member.pipe.send(("run", function, args, mine, None if member.number else joins_after_step, joins_in))
        self._form(members)
        deadline = time.monotonic() + RUN_TIMEOUT_S
        living = list(members)
        while not all(member.has_ended for member in living):
            assert time.monotonic() < deadline, f"hangs: {[(m.number, m.outcome, m.messages) for m in members]}"
            sources = [member.pipe for member in living if not member.has_ended]
            ready = multiprocessing.connection.wait(sources, timeout=0.05)
            died = [member for member in living if member.pipe in ready and not self._read(member)]
            if died:
                living = [member for member in living if member not in died]
                self._form([member for member in living if not member.has_ended])
            if any(kind == "paused" for kind, _ in members[0].messages) and len(members) == world_size:
                joiner = self._member(world_size)
                mine = [fault for fault in faults or [] if fault.member == world_size]
                joiner.pipe.send(("run", function, args, mine, None, joins_in))
                members.append(joiner)
                living.append(joiner)
                self._form([member for member in living if not member.has_ended])
        for member in living:
            self._idle.append((member.process, member.pipe, member.address))
        self.messages = [message for member in members for message in member.messages]
        return [member.outcome for member in living]

    def close(self) -> None:
        """End all processes."""
        for process, pipe, _ in self._idle:
            pipe.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def _read(self, member: Member) -> bool:
        """Take what a process says; False when it has died."""
        try:
            kind, value = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            member.process.join()
            return False
        if kind == "ended":
            member.outcome = value
        elif kind == "failed":
            raise AssertionError(f"member {member.number}:\n{value}")
        else:
            member.messages.append((kind, value))
        return True

    def _form(self, members: list[Member]) -> None:
        self._generation += 1
        addresses = [member.address for member in members]
        for rank, member in enumerate(members):
            with contextlib.suppress(BrokenPipeError):
                member.pipe.send(("form", self._generation, rank, addresses))

    def _member(self, number: int) -> Member:
        if self._idle:
            process, pipe, address = self._idle.pop(0)
            return Member(number, process, pipe, address)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._device, self._via), daemon=True)
        process.start()
        theirs.close()
        return Member(number, process, ours, ours.recv())


def _serve(pipe: Connection, device: str, via: Via) -> None:
    """The life of a process: a thread takes messages, and starts another one to train."""
    endpoint = Endpoint("127.0.0.1")
    pipe.send(endpoint.address)
    membership = Membership(endpoint, KEY, device, via=via)
    training: threading.Thread | None = None
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message[0] == "run":
            if training is not None:
                training.join()
            _, function, args, faults, pause_after, pause_in = message
            listener = Recorder(faults, send, membership, pause_after, pause_in)
            training = threading.Thread(target=_train, args=(membership, listener, function, args), daemon=True)
            training.start()
        else:
            _, generation, rank, addresses = message
            membership.form(generation, rank, addresses)


def _train(membership: Membership, listener: Recorder, function: Any, args: Any) -> None:
    faults, send = listener.faults, listener.send
    plain_swap = Transport.swap

    def swap(self: Transport, buffers: Any) -> None:
        count = listener.visits.get(("swap", listener.step), 0) + 1
        for fault in faults:
            if fault.activity in ("swap", "uneven") and (fault.step, fault.nth) == (listener.step, count):
                peer, (outgoing, _) = next(iter(buffers.items()))
                part = outgoing if fault.activity == "uneven" else outgoing[: min(max(1, len(outgoing) // 2), 4096)]
                assert self.links[peer].socket.send(part) == len(part)
                os.kill(os.getpid(), signal.SIGKILL)
        listener.visit("swap", listener.step)
        plain_swap(self, buffers)

    Transport.swap = swap  # type: ignore[method-assign]
    try:
        group = membership.next_group()
        outcome = ("ended", function(Context(group, membership, listener), *args))
    except (Stopped, Dismissed) as error:
        outcome = ("ended", f"{type(error).__name__}: {error}")
    except BaseException:
        outcome = ("failed", traceback.format_exc())
    finally:
        Transport.swap = plain_swap  # type: ignore[method-assign]
    send(outcome)
