"""One event being taken: the attempt as it becomes, and what has to be done."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lockstep.workers.calls import PLACEMENT_TIMEOUT_S, Status
from lockstep.workers.launcher.attempt.commands import (
    Command,
    Discard,
    Form,
    GiveBack,
    Kill,
    Log,
    Take,
    TellChanged,
    TellStopped,
)
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Coming,
    Ended,
    Gathering,
    Leaving,
    Member,
    Ranked,
    Ready,
    Stage,
    State,
    Training,
)


class Turn:
    """What every answer to an event is made of.

    Args:
        attempt: as it stands.
        now: when the event happens, as awake.now() tells.

    Attributes:
        attempt: as it becomes.
        commands: what has to be done, in this order.
    """

    def __init__(self, attempt: Attempt, now: float) -> None:
        self.attempt, self.now = attempt, now
        self.commands: list[Command] = []

    @property
    def state(self) -> State:
        return self.attempt.state

    def enter(self, state: State) -> None:
        """Go over to a state."""
        self.attempt = replace(self.attempt, state=state)

    def do(self, command: Command) -> None:
        """Have something done, behind what was said before."""
        self.commands.append(command)

    def log(self, line: str, *, is_warning: bool = False, **facts: Any) -> None:
        self.do(Log(line, facts, is_warning))

    def tell_changed(self, message: str, refused: Sequence[str] = (), *, refuses_stop: bool = False) -> None:
        """Tell the coordinator who is in the gang now, and what has happened."""
        self.do(changed(self.attempt, message, refused, refuses_stop=refuses_stop))

    # Workers.

    def add(self, node_id: str, *, is_fresh: bool = False) -> None:
        """Take in a worker; events tell how it fares.

        Args:
            node_id: where.
            is_fresh: in a new process.
        """
        number = self.attempt.created
        member = Member(number, node_id, Coming(up_by=self.now + PLACEMENT_TIMEOUT_S))
        self.attempt = replace(self.attempt, members=(*self.attempt.members, member), created=number + 1)
        self.do(Take(number, node_id, is_fresh))

    def put(self, member: Member) -> None:
        """Have a worker be as it is here."""
        self.attempt = self.attempt.with_members([member])

    def move(self, member: Member, stage: Stage) -> None:
        """Have a worker come to another stage."""
        self.put(replace(member, stage=stage))

    def kill(self, member: Member, why: str = "") -> None:
        """End a worker's process; its death is an event.

        Args:
            member: the worker.
            why: if it hung.
        """
        stage = member.stage
        match stage:
            case Coming():
                stage = replace(stage, replace_by=None)
            case Leaving():
                stage = replace(stage, kill_by=None)
            case _:
                pass
        self.put(replace(member, stage=stage, killed_because=why or member.hung_because))
        self.do(Kill(member.number))

    def remove(self, member: Member, ended: Status | None = None) -> None:
        """Forget a worker that has ended or died, and free what it held.

        Args:
            member: the worker.
            ended: what it has told at its end; its process may be good for another job.
        """
        self.attempt = replace(
            self.attempt, members=tuple(other for other in self.attempt.members if other.number != member.number)
        )
        if ended is not None and ended.is_reusable:
            self.do(GiveBack(member.number, ended.memory_bytes, ended.has_left_log))
        else:
            self.do(Discard(member.number))

    def remove_all(self, members: Iterable[Member]) -> None:
        for member in members:
            self.remove(member)

    def form(self, why: str) -> None:
        """Begin the next generation with all that are ready, first those that have been there for longest.

        So rank 0 has the state if anyone has, and the order of survivors is their old one. Where nobody is ready, there
        is nobody to tell.
        """
        self.attempt = replace(self.attempt, peer_losses=self.attempt.peer_losses.ended())
        if not self.attempt.ready:
            return
        generation = self.attempt.generation + 1
        order = sorted(self.attempt.ready, key=lambda member: (_since(member) or generation, member.number))
        ranked = [
            replace(member, stage=Ranked(member.stage.bits, rank, _since(member) or generation))
            for rank, member in enumerate(order)
            if isinstance(member.stage, Ready | Ranked)
        ]
        self.attempt = replace(self.attempt.with_members(ranked), generation=generation)
        if isinstance(self.state, Gathering):
            self.enter(Training())
        numbers = tuple(member.number for member in ranked)
        self.do(Form(generation, numbers, tuple(member.address for member in ranked), why))
        self.log("generation formed", generation=generation, workers=list(numbers))

    def end(self, ended: Ended) -> None:
        """Leave nothing behind, and say so."""
        self.remove_all(self.attempt.members)
        self.attempt = replace(self.attempt, peer_losses=self.attempt.peer_losses.ended())
        self.enter(ended)
        if ended.error is not None:
            self.log("gang failed", reason=ended.error.reason, message=ended.error.message)
        self.do(TellStopped(ended.error, ended.is_too_small))


def changed(
    attempt: Attempt, message: str = "", refused: Sequence[str] = (), *, refuses_stop: bool = False
) -> TellChanged:
    """Who is in a gang now, as the coordinator is told: those that leave come last."""
    members = sorted(attempt.members, key=lambda member: member.is_leaving)
    node_ids = tuple(member.node_id for member in members)
    return TellChanged(attempt.revision, node_ids, attempt.running_workers, message, tuple(refused), refuses_stop)


def _since(member: Member) -> int | None:
    return member.stage.since if isinstance(member.stage, Ready | Ranked) else None
