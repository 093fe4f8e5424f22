"""What ends an attempt before its workers have left by themselves, and what it ends with."""

from dataclasses import replace

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import count
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.launcher.attempt.commands import Dismiss, Stop
from lockstep.workers.launcher.attempt.events import StopAsked
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Cause,
    Ended,
    Failing,
    Failure,
    Finishing,
    Gathering,
    Leaving,
    Left,
    Member,
    Stopping,
    Training,
)
from lockstep.workers.launcher.attempt.turn import Turn

AFTERMATH_S = 10.0
"""How long the other workers have to report what they saw, once one has failed; rank 0 has all metric points."""
LAST_GRACE_S = 60.0
"""How long the rest of a gang may take to leave once one of it is done."""
KEEP_GRACE_S = 60.0
"""How long the rest of a gang that has become too small may take to write a checkpoint."""


def stop(turn: Turn, asked: StopAsked, too_small_because: str | None = None) -> None:
    """Tell all workers to stop; before they have trained, nothing is there that would have to be kept.

    Args:
        turn: the event.
        asked: how.
        too_small_because: what has happened, if they stop since too few are left; None if the coordinator wants it.
    """
    stopping = Stopping(turn.now + (asked.grace_s if turn.attempt.generation > 0 else 0.0), asked.refusable)
    match turn.state:
        case Stopping(too_small_because=because, left=left, failures=failures):
            stopping = replace(stopping, too_small_because=because, left=left, failures=failures)
        case Failing(failures=failures):
            stopping = replace(stopping, failures=failures)
        case Finishing():
            stopping = replace(stopping, too_small_because=too_small_because, left=Left.BEFORE_THE_STOP)
        case _:
            stopping = replace(stopping, too_small_because=too_small_because)
    turn.enter(stopping)
    turn.do(Stop(tuple(member.number for member in turn.attempt.members), asked.keep, asked.refusable))


def take_refusal(turn: Turn, refused: int, why: str) -> None:
    """If the workers have just refused to stop, since they could not keep what they had, they train on.

    Args:
        turn: the event.
        refused: number of the last order that they have refused; 0 for none.
        why: in words.
    """
    state = turn.state
    if not isinstance(state, Stopping) or not 0 < state.refusable <= refused:
        return
    if state.too_small_because is not None or state.failures:
        return
    goes_on = Training() if turn.attempt.generation > 0 else Gathering()
    turn.enter(goes_on if state.left is Left.NONE else Finishing(turn.now + LAST_GRACE_S))
    turn.tell_changed(why, refuses_stop=True)


def check_size(turn: Turn, what: str, *, is_broken: bool = False) -> bool:
    """Whether too few workers are left or will come; then they write a checkpoint and leave.

    Args:
        turn: the event.
        what: what has happened.
        is_broken: a worker of the newest generation is gone, so that the others need another one.
    """
    left, least = len(turn.attempt.staying), turn.attempt.plan.min_workers
    if left >= least or isinstance(turn.state, Finishing | Stopping | Failing | Ended):
        return False
    if turn.attempt.generation > 0 and is_broken:
        turn.form("healed")
    turn.tell_changed(
        f"{what}; {count(left, 'worker')} left, fewer than resources.min_workers ({least}): "
        "the job writes a checkpoint and waits"
    )
    stop(turn, StopAsked(KEEP_GRACE_S, keep=True), too_small_because=what)
    return True


def fail(turn: Turn, error: JobError, cause: Cause) -> None:
    """A worker could not go on for a reason that the others share: end all, once they have reported."""
    _note(turn, Failure(error, cause))
    for member in turn.attempt.staying:
        turn.move(member, Leaving(is_surplus=False))
        if error.reason != FailureReason.RANKS_DISAGREE:  # there each rank tells its own
            turn.do(Dismiss(member.number))


def lose_all(turn: Turn, error: JobError) -> None:
    """Nobody is left that would go on; those that are on their way out are waited for."""
    _note(turn, Failure(error, Cause.DEATH))


def _note(turn: Turn, failure: Failure) -> None:
    limit = turn.now + AFTERMATH_S
    turn.attempt = replace(turn.attempt, peer_losses=turn.attempt.peer_losses.ended())
    match turn.state:
        case Stopping(deadline=deadline, failures=failures) as stopping:
            turn.enter(replace(stopping, deadline=min(limit, deadline), failures=(*failures, failure)))
        case Failing(deadline=deadline, failures=failures):
            turn.enter(Failing(min(limit, deadline), (*failures, failure)))
        case _:
            turn.enter(Failing(limit, (failure,)))


def agree(turn: Turn, done: Member) -> None:
    """A worker that trained is done: all have its result, or have kept what they had on a stop.

    Whoever waits for it in a later generation waits in vain, so the others are let go: those that are done too leave by
    themselves, and those that were about to join are not needed any more.
    """
    match turn.state:
        case Stopping() as stopping:
            turn.enter(replace(stopping, left=Left.SINCE_THE_STOP))
        case Gathering() | Training():
            turn.enter(Finishing(turn.now + LAST_GRACE_S))
        case _:
            pass
    turn.attempt = replace(turn.attempt, peer_losses=turn.attempt.peer_losses.ended())
    for member in turn.attempt.staying:
        if not member.is_ranked:
            turn.remove(member)
            continue
        turn.move(member, Leaving(is_surplus=False))
        if member.number != done.number:
            turn.do(Dismiss(member.number))


def outcome(attempt: Attempt) -> Ended:
    """What an attempt has ended with when no worker is left."""
    match attempt.state:
        case Stopping(too_small_because=None):
            return Ended()
        case Stopping(too_small_because=str(), failures=failures) if failures:
            return Ended(first_cause(failures))
        case Stopping(too_small_because=str(because), left=left):
            if left is Left.SINCE_THE_STOP:
                return Ended(is_too_small=True)
            message = f"{because}; no worker was left that could write a checkpoint"
            return Ended(JobError(reason=FailureReason.WORKER_LOST, message=message))
        case Failing(failures=failures):
            return Ended(first_cause(failures))
        case _:
            return Ended()


def first_cause(failures: tuple[Failure, ...]) -> JobError:
    """The error that the others follow from: what a worker did itself, before a death, before a lost peer."""
    return min(failures, key=lambda failure: failure.cause).error
