"""How workers go without having been told to, and what becomes of the others."""

from collections.abc import Sequence

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import go_on
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.launcher.attempt.ending import check_size, lose_all
from lockstep.workers.launcher.attempt.events import Died
from lockstep.workers.launcher.attempt.joining import not_placed
from lockstep.workers.launcher.attempt.state import (
    Coming,
    Finishing,
    Gathering,
    Member,
    Reading,
    Stopping,
    Training,
)
from lockstep.workers.launcher.attempt.turn import Turn
from lockstep.workers.launcher.attempt.worker_loss_messages import lost_with, what_happened


def hung(turn: Turn, member: Member, why: str) -> None:
    """A worker gets nowhere: its process is killed, and its death is the next that is heard of it."""
    if member.killed_because is None:
        turn.log("a worker hangs", is_warning=True, worker=member.number, why=why)
        turn.kill(member, why)


def died(turn: Turn, member: Member, event: Died) -> None:
    """A worker's process is gone."""
    match turn.state:
        case Gathering() | Training() | Finishing() if not member.is_leaving and not _is_missing(member):
            _lose(turn, event)
        case Gathering() | Training() if not member.is_leaving:
            _replace(turn, member, member.hung_because or event.first.error.message)
        case Stopping() if member.is_ranked:
            turn.remove(member)
            turn.form("healed")  # so that the others can write their checkpoint
            turn.tell_changed("")
        case _:
            turn.remove(member)
            turn.tell_changed("")


def go_on_without(turn: Turn, members: Sequence[Member], what: str) -> None:
    """Workers are gone; the others go on, if they are enough."""
    is_broken = any(member.is_ranked for member in members)
    if check_size(turn, what, is_broken=is_broken):
        return
    if turn.attempt.generation > 0 and is_broken:
        turn.form("healed")
        turn.tell_changed(f"{what}; {go_on(turn.attempt.running_workers)}")
    else:
        turn.tell_changed(what)


def _lose(turn: Turn, event: Died) -> None:
    """A worker is gone: go on without it and those that went with it, or end if nobody is left."""
    before = turn.attempt.members
    lost = [loss for loss in lost_with(event, before) if not loss.member.is_leaving and not _is_missing(loss.member)]
    for loss in lost:
        turn.remove(loss.member)
        turn.log("a worker is lost", worker=loss.member.number, node_id=loss.member.node_id, why=loss.fate)
    what = what_happened(lost, before)
    if turn.attempt.staying:
        go_on_without(turn, [loss.member for loss in lost], what)
    else:
        message = f"{what}; no other worker was left"
        lose_all(turn, JobError(reason=FailureReason.WORKER_LOST, message=message, rank=event.first.number))


def _replace(turn: Turn, member: Member, what: str) -> None:
    """One is gone that was about to come; if its process had been there before, it may have died or hung long ago."""
    turn.remove(member)
    turn.log("a worker is lost", worker=member.number, node_id=member.node_id, why=what)
    if not member.is_reused:
        not_placed(turn, what)
        return
    turn.add(member.node_id, is_fresh=True)
    if member.hung_because:
        turn.tell_changed(f"{what}; a new process takes its place")


def _is_missing(member: Member) -> bool:
    """Whether a worker has not come up, or not got to the end of its data in a process that was there before."""
    match member.stage:
        case Coming():
            return True
        case Reading():
            return member.is_reused
        case _:
            return False
