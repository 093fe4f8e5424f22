"""What becomes of an attempt in every state at every kind of event."""

from dataclasses import replace
from typing import get_args

import pytest

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import Status
from lockstep.workers.launcher.attempt.advance import advance
from lockstep.workers.launcher.attempt.commands import Log
from lockstep.workers.launcher.attempt.events import (
    CameUp,
    Death,
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
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Bits,
    Cause,
    Coming,
    Ended,
    Failing,
    Failure,
    Finishing,
    Gathering,
    Leaving,
    Member,
    Plan,
    Ranked,
    Reading,
    Ready,
    State,
    Stopping,
    Training,
)
from tests.support.attempt_world import DATA, HARDWARE, check

NOW = 100.0
BITS = Bits(HARDWARE, DATA)
PREPARED = Status(is_prepared=True, hardware=HARDWARE, data=DATA)
LOST = JobError(reason="WORKER_LOST", message="worker 0 died: its process was killed or crashed")
NOT_FINITE = JobError(reason="NON_FINITE_LOSS", message="train_loss is nan at step 7")
FAILED = Failure(NOT_FINITE, Cause.OWN)


def member(number: int, stage: Coming | Reading | Ready | Ranked | Leaving) -> Member:
    address = "" if isinstance(stage, Coming) else f"address-{number}"
    return Member(number, f"node-{number}", stage, address)


RANKED = tuple(member(number, Ranked(BITS, number, 1)) for number in (0, 1))
COMES = member(2, Coming(up_by=NOW + 60))
READS = member(2, Reading())
LEAVES = tuple(member(number, Leaving(is_surplus=False)) for number in (0, 1, 2))

PLACING = Attempt(Plan(1), Gathering(), (member(0, Reading()), member(1, Coming(NOW + 60)), COMES), created=3)
MEETING = Attempt(
    Plan(1), Gathering(), (member(0, Reading()), member(1, Ready(BITS)), member(2, Ready(BITS))), created=3
)
TRAINING = Attempt(Plan(1), Training(), RANKED, 1, created=2)
GROWING = Attempt(Plan(1), Training(), (*RANKED, COMES), 1, created=3)
APART = replace(TRAINING, peer_losses=TRAINING.peer_losses.begun(NOW - 2.0))
FINISHING = Attempt(Plan(1), Finishing(NOW + 60), LEAVES[:2], 1, created=3)
STOPPING = Attempt(Plan(1), Stopping(NOW + 60, refusable=7), (*RANKED, READS), 1, created=3)
TOO_SMALL = Attempt(Plan(3), Stopping(NOW + 60, too_small_because="worker 2 died"), RANKED, 1, created=3)
FAILING = Attempt(Plan(1), Failing(NOW + 10, (FAILED,)), LEAVES, 1, created=3)
ENDED = Attempt(Plan(1), Ended(), (), 1, created=3)

ATTEMPTS = {
    "placing": PLACING,
    "meeting": MEETING,
    "training": TRAINING,
    "growing": GROWING,
    "apart": APART,
    "finishing": FINISHING,
    "stopping": STOPPING,
    "too small": TOO_SMALL,
    "failing": FAILING,
    "ended": ENDED,
}

EVENTS: dict[str, Event] = {
    "taken, used before": Taken(2, is_reused=True, is_warm=True),
    "up": CameUp(2, "address-2"),
    "prepared": Told(0, PREPARED),
    "lost its peers": Told(0, PREPARED._replace(lost_generation=1)),
    "went on": Told(0, PREPARED._replace(went_on_in=1)),
    "refuses to stop": Told(0, PREPARED._replace(refused_stop=7, refused_because="the disk is full")),
    "left in order": Told(0, Status(has_ended=True, is_reusable=True)),
    "is done": Told(0, PREPARED._replace(has_finished=True)),
    "was let go": Told(0, Status(has_ended=True, is_reusable=True, was_dismissed=True)),
    "failed": Told(0, Status(has_ended=True, error_bytes=NOT_FINITE.SerializeToString())),
    "died": Died(Death(0, LOST)),
    "all died": Died(Death(0, LOST), (Death(1, LOST), Death(2, LOST))),
    "hung": Hung(0, "worker 0 did not answer for 30 s"),
    "time, early": TimeIsUp(),
    "stop": StopAsked(20.0, keep=True),
    "resize": ResizeAsked(1, ("node-0", "node-9")),
    "launcher failed": LauncherFailed("RuntimeError: Ray is away"),
    "unknown worker": Died(Death(9, LOST)),
}

SAME = "="
# By event: attempts, the state that they are in then, and what has to be done; lines for the log apart.
OUTCOMES = """
taken, used before
    placing -> Gathering
    meeting, training, apart, finishing, stopping, too small, failing, ended -> =
    growing -> Training
up
    placing -> Gathering
    meeting -> Gathering: TellStarted
    training, apart, finishing, stopping, too small, failing, ended -> =
    growing -> Training
prepared
    placing -> Gathering
    meeting -> Training: Form TellChanged
    training, growing, apart, finishing, stopping, too small, failing, ended -> =
lost its peers
    placing, meeting -> Training: Form TellChanged
    training, growing -> Training
    apart, finishing, failing, ended -> =
    stopping, too small -> Stopping
went on
    placing -> Gathering
    meeting -> Training: Form TellChanged
    training, growing, apart -> Training
    finishing -> Finishing
    stopping, too small -> Stopping
    failing -> Failing
    ended -> =
refuses to stop
    placing -> Gathering
    meeting -> Training: Form TellChanged
    training, growing, apart, finishing, too small, failing, ended -> =
    stopping -> Training: TellChanged
left in order
    placing -> Gathering: GiveBack TellChanged
    meeting -> Training: GiveBack TellChanged Form TellChanged
    training, apart -> Finishing: Dismiss GiveBack TellChanged
    growing -> Finishing: Dismiss Discard GiveBack TellChanged
    finishing -> Finishing: GiveBack TellChanged
    stopping -> Stopping: Dismiss Discard GiveBack TellChanged
    too small -> Stopping: Dismiss GiveBack TellChanged
    failing -> Failing: GiveBack TellChanged
    ended -> =
is done
    placing -> Gathering
    meeting -> Training: Form TellChanged
    training, apart -> Finishing: Dismiss
    growing -> Finishing: Dismiss Discard
    finishing, failing, ended -> =
    stopping -> Stopping: Dismiss Discard
    too small -> Stopping: Dismiss
was let go
    placing -> Gathering: GiveBack TellChanged
    meeting -> Training: GiveBack TellChanged Form TellChanged
    training, growing, apart -> Training: GiveBack Form TellChanged
    finishing -> Finishing: GiveBack TellChanged
    stopping, too small -> Stopping: GiveBack Form TellChanged
    failing -> Failing: GiveBack TellChanged
    ended -> =
failed
    placing, meeting, growing -> Failing: Discard Dismiss Dismiss
    training, apart -> Failing: Discard Dismiss
    stopping -> Stopping: Discard Dismiss Dismiss
    too small -> Stopping: Discard Dismiss
    finishing, failing -> Failing: Discard
    ended -> =
died
    placing -> Gathering: Discard TellChanged
    meeting -> Training: Discard TellChanged Form TellChanged
    training, growing, apart -> Training: Discard Form TellChanged
    finishing -> Finishing: Discard TellChanged
    stopping, too small -> Stopping: Discard Form TellChanged
    failing -> Failing: Discard TellChanged
    ended -> =
all died
    placing -> Gathering: Discard TellChanged
    meeting -> Ended: Discard Discard Discard TellStopped
    training, apart -> Ended: Discard Discard TellStopped
    finishing -> Finishing: Discard TellChanged
    growing -> Training: Discard Discard TellChanged
    stopping, too small -> Stopping: Discard Form TellChanged
    failing -> Failing: Discard TellChanged
    ended -> =
hung
    placing, meeting -> Gathering: Kill
    training, growing, apart -> Training: Kill
    finishing -> Finishing: Kill
    stopping, too small -> Stopping: Kill
    failing -> Failing: Kill
    ended -> =
time, early
    placing, meeting, training, growing, finishing, stopping, too small, failing, ended -> =
    apart -> Training: Form TellChanged
stop
    placing, meeting, training, growing, apart, finishing, stopping, too small, failing -> Stopping: Stop
    ended -> =
resize
    placing, meeting -> Gathering: Dismiss Dismiss Take TellChanged
    training, apart -> Training: Form Dismiss Take TellChanged
    growing -> Training: Form Dismiss Dismiss Take TellChanged
    finishing -> Finishing: TellChanged
    stopping, too small -> Stopping: TellChanged
    failing -> Failing: TellChanged
    ended -> =
launcher failed
    placing, meeting, growing, stopping, failing -> Ended: Discard Discard Discard TellStopped
    training, apart, finishing, too small -> Ended: Discard Discard TellStopped
    ended -> =
unknown worker
    placing, meeting, training, growing, apart, finishing, stopping, too small, failing, ended -> =
"""


def outcome(attempt: Attempt, event: Event) -> str:
    after, commands = advance(attempt, event, NOW)
    check(after)
    names = " ".join(type(command).__name__ for command in commands if not isinstance(command, Log))
    if after == attempt and not names:
        return SAME
    return f"{type(after.state).__name__}: {names}".rstrip(": ") if names else type(after.state).__name__


def rows() -> dict[tuple[str, str], str]:
    """What the table says, by event and attempt."""
    told: dict[tuple[str, str], str] = {}
    event = ""
    for line in OUTCOMES.strip().splitlines():
        if not line.startswith(" "):
            event = line
            continue
        attempts, _, words = line.strip().partition(" -> ")
        for attempt in attempts.split(", "):
            assert (event, attempt) not in told, "it is said once"
            told[event, attempt] = words
    return told


def test_the_table_is_total() -> None:
    assert set(rows()) == {(event, attempt) for event in EVENTS for attempt in ATTEMPTS}
    assert {type(event) for event in EVENTS.values()} == set(get_args(Event))
    assert {type(attempt.state) for attempt in ATTEMPTS.values()} == set(get_args(State))


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("event", EVENTS)
def test_every_attempt_knows_what_to_do_at_every_event(event: str, attempt: str) -> None:
    check(ATTEMPTS[attempt])
    assert outcome(ATTEMPTS[attempt], EVENTS[event]) == rows()[event, attempt]
