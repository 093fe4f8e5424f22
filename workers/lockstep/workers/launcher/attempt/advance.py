"""The life of an attempt as a pure function: events in, the next attempt and commands out."""

from collections.abc import Sequence
from dataclasses import replace

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import count, go_on
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import Status
from lockstep.workers.launcher.attempt import ending, joining, worker_loss
from lockstep.workers.launcher.attempt.commands import Command, Dismiss
from lockstep.workers.launcher.attempt.events import (
    CameUp,
    Died,
    Event,
    Hung,
    LauncherFailed,
    ResizeAsked,
    StopAsked,
    Taken,
    TimeIsUp,
    Told,
)
from lockstep.workers.launcher.attempt.partition import HOPELESS
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Cause,
    Ended,
    Failing,
    Finishing,
    Gathering,
    Leaving,
    Member,
    Plan,
    Stopping,
    Training,
)
from lockstep.workers.launcher.attempt.turn import Turn

LEAVE_GRACE_S = 10.0
"""How long a worker that is let go may take."""

Step = tuple[Attempt, list[Command]]


def begin(plan: Plan, node_ids: Sequence[str], now: float) -> Step:
    """Bring up the first workers, one on each of these nodes."""
    turn = Turn(Attempt(plan), now)
    for node_id in node_ids:
        turn.add(node_id)
    return _settled(turn)


def take_over(attempt: Attempt, now: float, *, is_whole: bool) -> Step:
    """Look after workers of an earlier launcher.

    Args:
        attempt: the attempt with them, as they have told.
        now: when.
        is_whole: all workers of their newest generation are among them.
    """
    turn = Turn(attempt, now)
    for member in attempt.members:
        if isinstance(member.stage, Leaving):
            turn.move(member, replace(member.stage, kill_by=now + LEAVE_GRACE_S))
    # Those that are left may be on their way out already, which only the launcher before knew.
    is_too_small = ending.check_size(turn, "workers were lost before this launcher came", is_broken=not is_whole)
    if attempt.generation > 0 and not is_whole and not is_too_small and turn.attempt.ready:
        turn.form("healed")
        turn.tell_changed(f"{go_on(turn.attempt.running_workers)} after a change of the launcher")
    return _settled(turn)


def advance(attempt: Attempt, event: Event, now: float) -> Step:
    """Apply one event to an attempt.

    Args:
        attempt: the attempt as it stands.
        event: what has happened; news of a worker that is gone changes nothing, nor does anything after the end.
        now: when, as awake.now() tells.

    Returns:
        The attempt as it stands then, and what has to be done in this order.
    """
    if attempt.has_ended:
        return attempt, []
    turn = Turn(attempt, now)
    match event:
        case TimeIsUp():
            _time_is_up(turn)
        case StopAsked():
            ending.stop(turn, event)
        case ResizeAsked():
            _resize(turn, event)
        case LauncherFailed(why):
            turn.end(Ended(JobError(reason=FailureReason.INTERNAL, message=f"the launcher failed: {why}")))
        case Died(first) if (member := attempt.member(first.number)) is not None:
            worker_loss.died(turn, member, event)
        case Taken(number) | CameUp(number) | Told(number) | Hung(number):
            if (member := attempt.member(number)) is not None:
                _hear(turn, member, event)
    return _settled(turn)


def _settled(turn: Turn) -> Step:
    """What follows from what is, whatever has happened: nobody is left, or some can meet."""
    if not turn.attempt.has_ended:
        joining.meet(turn)
        if not turn.attempt.members:
            turn.end(ending.outcome(turn.attempt))
    return turn.attempt, turn.commands


def _hear(turn: Turn, member: Member, event: Taken | CameUp | Told | Hung) -> None:
    """There is news of a worker that is there."""
    match event:
        case Taken():
            joining.taken(turn, member, event)
        case CameUp():
            joining.came_up(turn, member, event)
        case Told(number, status):
            if status.is_done and member.is_ranked:
                ending.agree(turn, member)
                member = turn.attempt.member(number) or member
            if status.has_ended:
                _has_ended(turn, member, status)
            else:
                _has_told(turn, member, status)
        case Hung(_, why):
            worker_loss.hung(turn, member, why)


def _has_ended(turn: Turn, member: Member, status: Status) -> None:
    """A worker trains no more."""
    turn.remove(member, status)
    if not status.error_bytes:
        if status.was_dismissed and not member.is_leaving:  # a launcher that died has told it
            words = f"worker {member.number} was let go before this launcher came"
            worker_loss.go_on_without(turn, [member], words)
            return
        turn.tell_changed("")
        return
    error = JobError.FromString(status.error_bytes)
    match member.stage:
        case Leaving(is_surplus=True):
            turn.tell_changed(f"worker {member.number}, which was let go, failed: {error.message}")
        case Leaving():
            ending.fail(turn, error, _cause_of(status))
        case _ if turn.attempt.generation > 0 and member.bits is None:
            joining.refuse(turn, member, error.message)
        case _:
            ending.fail(turn, error, _cause_of(status))


def _cause_of(status: Status) -> Cause:
    return Cause.LOST_PEER if status.has_lost_peer else Cause.OWN


def _has_told(turn: Turn, member: Member, status: Status) -> None:
    """A worker that goes on has something to tell."""
    # An order of a launcher that died may have come to a worker after this one had asked it who it is.
    generation = max(status.lost_generation, turn.attempt.generation)
    losses = turn.attempt.peer_losses.gone_on(status.went_on_in)
    turn.attempt = replace(turn.attempt, generation=generation, peer_losses=losses)
    if generation > 0 and isinstance(turn.state, Gathering):
        turn.enter(Training())
    if status.is_prepared:
        joining.take_in(turn, member, status)
    ending.take_refusal(turn, status.refused_stop, status.refused_because)
    can_meet = isinstance(turn.state, Training | Stopping) and not member.is_leaving
    if can_meet and 0 < status.lost_generation == generation:
        turn.attempt = replace(turn.attempt, peer_losses=turn.attempt.peer_losses.begun(turn.now))


def _time_is_up(turn: Turn) -> None:
    match turn.state:
        case Finishing(deadline) | Stopping(deadline) | Failing(deadline) if turn.now >= deadline:
            turn.remove_all(turn.attempt.members)
            return
        case _:
            joining.late(turn)
    if turn.attempt.peer_losses.is_due(turn.now):
        _bring_together(turn)
    for member in turn.attempt.members:
        if member.kill_by is not None and turn.now >= member.kill_by:
            turn.kill(member)


def _bring_together(turn: Turn) -> None:
    """Workers that live have lost each other for too long."""
    losses = turn.attempt.peer_losses.counted()
    turn.attempt = replace(turn.attempt, peer_losses=losses)
    if losses.is_hopeless:
        ending.fail(turn, JobError(reason=FailureReason.WORKER_LOST, message=HOPELESS), Cause.LOST_PEER)
    else:
        turn.form("brought together again")
        turn.tell_changed(losses.words)


def _resize(turn: Turn, asked: ResizeAsked) -> None:
    """Take in workers on nodes that lack one, and let go those that are too many there."""
    turn.attempt = replace(turn.attempt, revision=max(asked.revision, turn.attempt.revision))
    if not isinstance(turn.state, Gathering | Training):
        turn.tell_changed("")  # each order is answered
        return
    wanted = list(asked.node_ids)
    leaving = []
    for member in turn.attempt.staying:
        if member.node_id in wanted:
            wanted.remove(member.node_id)
        else:
            leaving.append(member)
    for member in leaving:
        turn.move(member, Leaving(is_surplus=True, kill_by=turn.now + LEAVE_GRACE_S))
    words = ""
    if any(member.is_ranked for member in leaving):
        turn.form("shrunk")
        words = f"shrunk to {count(turn.attempt.running_workers, 'worker')}"
    for member in leaving:
        turn.do(Dismiss(member.number))
    for node_id in wanted:
        turn.add(node_id)
    turn.tell_changed(words)
