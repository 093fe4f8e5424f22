"""How workers come: up, with what their bits depend on, and into the next generation; or not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import count
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import ANSWER_TIMEOUT_S, PLACEMENT_TIMEOUT_S, Status
from lockstep.workers.launcher.attempt.commands import TellStarted
from lockstep.workers.launcher.attempt.ending import check_size
from lockstep.workers.launcher.attempt.events import CameUp, Taken
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Bits,
    Coming,
    Ended,
    Gathering,
    Member,
    Ranked,
    Reading,
    Ready,
    Training,
)
from lockstep.workers.launcher.attempt.turn import Turn

COLD_ANSWER_TIMEOUT_S = 20.0
"""How long a spare worker that has just been made may take to answer before a new one is made."""


def taken(turn: Turn, member: Member, process: Taken) -> None:
    """A process was found; one that was there before is replaced by a new one if it does not answer soon."""
    if isinstance(member.stage, Coming) and process.is_reused:
        patience_s = ANSWER_TIMEOUT_S if process.is_warm else COLD_ANSWER_TIMEOUT_S
        turn.put(replace(member, is_reused=True, stage=replace(member.stage, replace_by=turn.now + patience_s)))


def came_up(turn: Turn, member: Member, up: CameUp) -> None:
    """A process has answered."""
    stage = member.stage
    if isinstance(stage, Coming):
        stage = Reading() if stage.bits is None else Ready(stage.bits)
    turn.put(replace(member, stage=stage, address=up.address))
    if isinstance(turn.state, Gathering) and not any(isinstance(other.stage, Coming) for other in turn.attempt.members):
        turn.do(TellStarted())


def take_in(turn: Turn, member: Member, status: Status) -> None:
    """A worker has read the data: let it meet the others, unless its bits would differ from theirs."""
    if not isinstance(member.stage, Coming | Reading) or member.bits is not None:
        return
    bits = Bits(status.hardware, status.data)
    if turn.attempt.generation > 0 and (why := why_unlike(turn.attempt, member, bits)):
        refuse(turn, member, why)
    elif isinstance(member.stage, Coming):
        turn.move(member, replace(member.stage, bits=bits))
    else:
        turn.move(member, Ready(bits))


def refuse(turn: Turn, member: Member, why: str) -> None:
    """Let go a worker that cannot train with the others, which go on without it; it may have gone by itself."""
    if turn.attempt.member(member.number) is not None:
        turn.remove(member)
    turn.log("a worker is refused", is_warning=True, worker=member.number, node_id=member.node_id, why=why)
    words = f"worker {member.number} cannot join, and none is tried on its node {member.node_id} again: {why}"
    turn.tell_changed(words, refused=[member.node_id])
    check_size(turn, words)


def meet(turn: Turn) -> None:
    """Let those who are ready meet: at first all together, later whoever has come.

    Nobody disturbs those who write their last checkpoint, or who have finished.
    """
    ready = turn.attempt.ready
    match turn.state:
        case Gathering() if ready and ready == turn.attempt.staying:
            _refuse_who_differs(turn)
            turn.form("")
            turn.tell_changed("")
        case Training() if any(not isinstance(member.stage, Ranked) for member in ready):
            turn.form("grown")
            turn.tell_changed(f"grown to {count(turn.attempt.running_workers, 'worker')}")
        case _:
            pass


def _refuse_who_differs(turn: Turn) -> None:
    """Before the first generation: if the machines differ, go on with the largest class that is large enough."""
    hardware = {member.number: member.bits.hardware for member in turn.attempt.staying if member.bits is not None}
    chosen, workers = Counter(hardware.values()).most_common(1)[0]
    if workers >= turn.attempt.plan.min_workers:  # else the ranks find it out and say so
        for member in turn.attempt.staying:
            if hardware[member.number] != chosen:
                refuse(turn, member, _differs(hardware[member.number], {chosen}))


def late(turn: Turn) -> None:
    """Give up workers that are not up in time: fatal for a gang that begins, unfortunate for one that grows."""
    members = turn.attempt.members
    slow = [member for member in members if member.up_by is not None and turn.now >= member.up_by]
    if not slow:
        return
    if isinstance(turn.state, Gathering):
        why = (
            f"{len(slow)} of {count(len(members), 'worker')} {'was' if len(slow) == 1 else 'were'} not up after "
            f"{PLACEMENT_TIMEOUT_S:.0f} s; others on the cluster may hold what they need"
        )
        turn.end(Ended(JobError(reason=FailureReason.PLACEMENT_FAILED, message=why)))
        return
    turn.remove_all(slow)
    turn.tell_changed("")
    check_size(turn, "a worker did not come up")


def not_placed(turn: Turn, why: str) -> None:
    """A worker, which is gone, did not come up."""
    if isinstance(turn.state, Gathering):
        turn.end(Ended(JobError(reason=FailureReason.PLACEMENT_FAILED, message=f"a worker did not come up: {why}")))
        return
    turn.tell_changed("")
    check_size(turn, why)


def why_unlike(attempt: Attempt, member: Member, bits: Bits) -> str:
    """Why a worker's bits would differ from those of the others that have read the data, in words; empty if not."""
    others = [other.bits for other in attempt.members if other.bits is not None and other.number != member.number]
    classes, theirs = {other.hardware for other in others}, {other.data for other in others}
    if others and bits.hardware not in classes:
        return _differs(bits.hardware, classes)
    if others and bits.data not in theirs:
        return (
            f"data.{attempt.plan.data_kind}: its data is not that of the others, so that its bits would differ (the "
            f"SHA-256 of its examples is {bits.data or 'unknown'}, theirs is "
            f"{' and '.join(sorted(theirs)) or 'unknown'}); scale the job to have it tried again once the data there "
            "is the same"
        )
    return ""


def _differs(hardware: str, theirs: Iterable[str]) -> str:
    return f"it has {hardware}, the others have {' and '.join(sorted(theirs))}, so that its bits could differ"
