from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lockstep.server.errors import InvalidRequest, JobHasEnded, JobIsStopping
from lockstep.server.jobs.job import (
    ENDED,
    WORKING,
    Admitted,
    CancelAsked,
    CanNeverFit,
    Event,
    GangGone,
    GangJoined,
    Job,
    Launch,
    Note,
    PauseAsked,
    Progress,
    Reported,
    ResumeAsked,
    RetryAfter,
    Scaled,
    State,
    Stop,
    WorkersChanged,
    WorkersForgotten,
)
from lockstep.server.jobs.lifecycle import MAX_PLACEMENT_FAILURES, IllegalTransition, advance, stop_under_way
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec, RecoverySpec, ResourcesSpec

NOW = datetime(2030, 1, 2, tzinfo=UTC)
DONE = JobResult(weights_digest="d")
LOST = JobError(reason="WORKER_LOST", message="A worker was killed.")
BROKEN = JobError(reason="USER_ERROR", message="ValueError")
UNPLACED = JobError(reason="PLACEMENT_FAILED", message="no room")

EVENTS: dict[str, Event] = {
    "admitted": Admitted(("a", "b")),
    "joined": GangJoined(2),
    "reported": Reported(Progress(3, 10, 0.3), "cpu"),
    "finished": Reported(Progress(10, 10, 1.0), "cpu", DONE),
    "changed": WorkersChanged(1, "rank 1 was lost"),
    "gone": GangGone(),
    "too small": GangGone(is_too_small=True),
    "lost": GangGone(LOST),
    "broken": GangGone(BROKEN),
    "unplaced": GangGone(UNPLACED),
    "cancel": CancelAsked(),
    "pause": PauseAsked(),
    "resume": ResumeAsked(),
    "scaled": Scaled(3),
    "forgotten": WorkersForgotten("the workers were gone"),
    "never": CanNeverFit("too small"),
}
ASKED_BY_USERS = {"cancel", "pause", "resume", "scaled"}
TRAINING = {
    "joined": None,
    "reported": State.RUNNING,
    "finished": State.RUNNING,
    "changed": None,
    "gone": State.QUEUED,
    "too small": State.QUEUED,
    "lost": State.QUEUED,
    "broken": State.FAILED,
    "unplaced": State.QUEUED,
    "cancel": State.CANCELLING,
    "pause": State.PAUSING,
    "resume": None,
    "scaled": None,
    "forgotten": State.QUEUED,
}
LAST_WORDS = dict.fromkeys(("joined", "changed", "gone", "too small", "lost", "broken", "unplaced"))

# What each event makes of a job in each state, None where it stays; what is not here is refused.
LEGAL: dict[State, dict[str, State | None]] = {
    State.QUEUED: {
        "admitted": State.STARTING,
        "cancel": State.CANCELLED,
        "pause": State.PAUSED,
        "resume": None,
        "scaled": None,
        "never": State.FAILED,
    },
    State.STARTING: TRAINING,
    State.RUNNING: TRAINING,
    State.PAUSING: {
        "joined": None,
        "reported": None,
        "finished": None,
        "changed": None,
        "gone": State.PAUSED,
        "too small": State.PAUSED,
        "lost": State.PAUSED,
        "broken": State.FAILED,
        "unplaced": State.PAUSED,
        "cancel": State.CANCELLING,
        "pause": None,
        "scaled": None,
        "forgotten": State.PAUSED,
    },
    State.PAUSED: {"cancel": State.CANCELLED, "pause": None, "resume": State.QUEUED, "scaled": None},
    State.CANCELLING: {
        "joined": None,
        "reported": None,
        "finished": None,
        "changed": None,
        "gone": State.CANCELLED,
        "too small": State.CANCELLED,
        "lost": State.CANCELLED,
        "broken": State.CANCELLED,
        "unplaced": State.CANCELLED,
        "cancel": None,
        "scaled": None,
        "forgotten": State.CANCELLED,
    },
    State.SUCCEEDED: LAST_WORDS,
    State.FAILED: LAST_WORDS,
    State.CANCELLED: LAST_WORDS | {"cancel": None},
}


def job_in(state: State, max_restarts: int = 2) -> Job:
    return Job(
        job_id="job-1",
        number=1,
        spec=JobSpec(
            recovery=RecoverySpec(max_restarts=max_restarts),
            resources=ResourcesSpec(workers=2, min_workers=1, shards=4),
        ),
        state=state,
        state_reason="",
        create_time=NOW,
        engine_version="1",
        curve_digest="c",
        attempt=0 if state is State.QUEUED else 1,
    )


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_in_every_state_does_what_the_table_says_or_is_refused(state: State, event: str) -> None:
    job = job_in(state)
    if event not in LEGAL[state]:
        refusals = (JobHasEnded, JobIsStopping) if event in ASKED_BY_USERS else IllegalTransition
        with pytest.raises(refusals):
            advance(job, EVENTS[event], NOW)
        return
    expected = LEGAL[state][event] or state
    after, commands = advance(job, EVENTS[event], NOW)
    assert after.state is expected
    assert (after.end_time == NOW) is (expected in ENDED and state not in ENDED)
    if expected is not state:
        assert after.state_reason
    if expected not in WORKING:
        assert after.running_workers == 0
    starts_or_stops = [command for command in commands if isinstance(command, Launch | Stop)]
    assert bool(starts_or_stops) is (expected is not state and expected in WORKING - {State.RUNNING})


def test_admission_begins_the_next_attempt_and_launches_it_where_it_was_placed() -> None:
    job, commands = advance(job_in(State.QUEUED), Admitted(("a", "b")), NOW)
    assert job.attempt == 1
    assert commands == [Launch(("a", "b"))]


def test_the_first_report_starts_the_clock_and_later_ones_leave_it() -> None:
    job, _ = advance(job_in(State.STARTING), Reported(Progress(1, 9), "cpu x"), NOW)
    later, _ = advance(job, Reported(Progress(2, 9)), NOW.replace(year=2031))
    assert (later.start_time, later.hardware_class, later.progress.step) == (NOW, "cpu x", 2)


ENDS_OF_GANGS = ["gone", "too small", "lost", "broken", "unplaced", "forgotten"]


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.PAUSING])
@pytest.mark.parametrize("event", ENDS_OF_GANGS)
def test_a_result_ends_the_job_once_its_workers_are_gone_whatever_became_of_them(state: State, event: str) -> None:
    going_on = State.PAUSING if state is State.PAUSING else State.RUNNING
    job, commands = advance(job_in(state, max_restarts=0), EVENTS["finished"], NOW)
    assert (job.state, job.result, job.end_time, commands) == (going_on, DONE, None, [])
    for change in (WorkersChanged(1), Scaled(1)):
        job, _ = advance(job, change, NOW)
        assert (job.state, job.result) == (going_on, DONE)
    job, commands = advance(job, EVENTS[event], NOW)
    assert (job.state, job.state_reason, job.end_time) == (State.SUCCEEDED, "all steps are done", NOW)
    assert (job.result, job.error, job.restarts, commands) == (DONE, None, 0, [])


@pytest.mark.parametrize("event", ENDS_OF_GANGS)
def test_a_job_that_is_cancelled_after_its_result_has_none_and_takes_none(event: str) -> None:
    job, _ = advance(job_in(State.RUNNING), EVENTS["finished"], NOW)
    job, commands = advance(job, CancelAsked(), NOW)
    assert (job.state, job.result, commands) == (State.CANCELLING, None, [Stop(10.0)])
    job, _ = advance(job, EVENTS["finished"], NOW)
    assert (job.state, job.result) == (State.CANCELLING, None), "it comes too late"
    job, _ = advance(job, EVENTS[event], NOW)
    assert (job.state, job.result) == (State.CANCELLED, None)


def test_a_job_that_goes_on_on_other_hardware_says_so_once() -> None:
    job, commands = advance(job_in(State.STARTING), Reported(Progress(1, 9), "cpu AVX2"), NOW)
    assert commands == []
    for hardware_class in ("", "cpu AVX2"):
        job, commands = advance(job, Reported(Progress(2, 9), hardware_class), NOW)
        assert (job.hardware_class, commands) == ("cpu AVX2", [])
    job, [note] = advance(job, Reported(Progress(3, 9), "cpu AVX512"), NOW)
    assert job.hardware_class == "cpu AVX512"
    assert note == Note(
        "THE HARDWARE DIFFERS: the job trains on cpu AVX512 now, and trained on cpu AVX2 before; "
        "from here on its bits may differ from those of an undisturbed run"
    )
    assert advance(job, Reported(Progress(4, 9), "cpu AVX512"), NOW)[1] == []


def test_an_attempt_that_lost_all_workers_is_followed_by_another_until_the_restarts_are_used_up() -> None:
    job = replace(job_in(State.RUNNING, max_restarts=1), progress=Progress(5, 9), newest_checkpoint=4)
    job, commands = advance(job, GangGone(LOST), NOW)
    assert (job.state, job.restarts, job.progress) == (State.QUEUED, 1, Progress(5, 9))
    assert "goes on from its newest checkpoint, of step 4" in job.state_reason
    assert commands == [RetryAfter(1.0)]
    job, _ = advance(job, Admitted(("a",)), NOW)
    job, _ = advance(job, GangGone(LOST), NOW)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.reason == "WORKER_LOST"
    assert job.error.message.endswith(
        "may not start again: recovery.max_restarts is 1. The last good checkpoint is of step 4."
    )


def test_a_job_without_a_checkpoint_says_that_it_starts_from_the_beginning() -> None:
    job, _ = advance(job_in(State.RUNNING), GangGone(LOST), NOW)
    assert "starts from the beginning, since it has no checkpoint" in job.state_reason


def test_a_gang_that_became_too_small_costs_no_restart() -> None:
    job, commands = advance(job_in(State.RUNNING, max_restarts=0), GangGone(is_too_small=True), NOW)
    assert (job.state, job.restarts) == (State.QUEUED, 0)
    assert "fewer workers were left than resources.min_workers, which is 1" in job.state_reason
    assert commands == [RetryAfter(1.0)]


@pytest.mark.parametrize("gone", [GangGone(LOST), GangGone(is_too_small=True)])
def test_a_job_that_loses_its_workers_again_and_again_waits_longer_until_it_gets_further(gone: GangGone) -> None:
    job = job_in(State.RUNNING, max_restarts=1000)
    delays = []
    for step in (0, 0, 0, 0, 7, 7, 3, 8):
        job, _ = advance(job, Reported(Progress(step, 9)), NOW)
        job, [command] = advance(job, gone, NOW)
        assert isinstance(command, RetryAfter)
        delays.append(command.delay_s)
        job, _ = advance(job, Admitted(("a", "b")), NOW)
    assert delays == [1, 2, 4, 8, 1, 2, 4, 1]
    for _ in range(9):
        job, commands = advance(job, gone, NOW)
        assert "attempts in a row that got no further" in job.state_reason
        job, _ = advance(job, Admitted(("a", "b")), NOW)
    assert (commands, job.restarts) == ([RetryAfter(60)], 0 if gone.is_too_small else 17)


def test_workers_that_leave_without_a_word_count_as_lost() -> None:
    job, _ = advance(job_in(State.RUNNING, max_restarts=0), GangGone(), NOW)
    assert job.error is not None
    assert (job.state, job.error.reason) == (State.FAILED, "WORKER_LOST")


def test_an_error_of_the_users_own_is_never_tried_again() -> None:
    job, _ = advance(job_in(State.RUNNING), GangGone(BROKEN), NOW)
    assert (job.state, job.error, job.restarts) == (State.FAILED, BROKEN, 0)
    job, _ = advance(replace(job_in(State.RUNNING), newest_checkpoint=7), GangGone(BROKEN), NOW)
    assert job.error is not None
    assert job.error.message == "ValueError The last good checkpoint is of step 7."
    assert BROKEN.message == "ValueError", "what the launcher said stays as it is"
    bent = JobError(reason="NOT_DETERMINISTIC", message="body.1.moving_mean is a tensor that is no buffer")
    job, _ = advance(job_in(State.RUNNING), GangGone(bent), NOW)
    assert (job.state, job.error, job.restarts) == (State.FAILED, bent, 0)


def test_a_gang_that_could_not_be_placed_is_tried_again_later_and_not_for_ever() -> None:
    job = job_in(State.STARTING)
    for failures in range(1, MAX_PLACEMENT_FAILURES):
        job, commands = advance(job, GangGone(UNPLACED), NOW)
        assert (job.state, job.placement_failures, job.restarts) == (State.QUEUED, failures, 0)
        assert isinstance(commands[0], RetryAfter)
        job, _ = advance(job, Admitted(("a",)), NOW)
    job, _ = advance(job, GangGone(UNPLACED), NOW)
    assert (job.state, job.error) == (State.FAILED, UNPLACED)


def test_steps_that_were_taken_end_a_row_of_failed_placements() -> None:
    job, _ = advance(replace(job_in(State.STARTING), placement_failures=3), EVENTS["reported"], NOW)
    assert job.placement_failures == 0


def test_cancelling_a_running_job_stops_its_gang_with_grace() -> None:
    job, commands = advance(job_in(State.RUNNING), CancelAsked(), NOW)
    assert (job.state, commands) == (State.CANCELLING, [Stop(10.0)])
    again, commands = advance(job, CancelAsked(), NOW)
    assert (again, commands) == (job, [])


def test_workers_that_were_forgotten_cost_no_restart() -> None:
    job, _ = advance(replace(job_in(State.RUNNING), restarts=2), WorkersForgotten("the workers were gone"), NOW)
    assert (job.state, job.restarts, job.start_time) == (State.QUEUED, 2, None)
    assert job.state_reason.startswith("the workers were gone; the job starts from the beginning")


def test_the_first_report_of_a_new_attempt_may_lie_before_the_last_of_the_one_before() -> None:
    job = replace(job_in(State.QUEUED), progress=Progress(9, 10), generation=4, sequence=17)
    job, _ = advance(job, Admitted(("a", "b")), NOW)
    assert (job.progress.step, job.generation, job.sequence) == (9, 0, 0)
    job, _ = advance(job, Reported(Progress(6, 10), generation=1, sequence=1), NOW)
    assert (job.progress.step, job.generation, job.sequence) == (6, 1, 1)


def test_a_report_adds_its_heals_and_its_notes_become_events() -> None:
    report = Reported(Progress(3, 10), heals=2, notes=("one", "two"), checkpoint_steps=(2, 3))
    job, commands = advance(replace(job_in(State.RUNNING), heals=1), report, NOW)
    assert (job.heals, job.newest_checkpoint) == (3, 3)
    assert commands == [Note("one"), Note("two")]
    for steps, newest in ((None, 3), ((1, 2), 2), ((), None)):
        job, _ = advance(job, Reported(Progress(3, 10), checkpoint_steps=steps), NOW)
        assert job.newest_checkpoint == newest


def test_pausing_asks_the_workers_for_a_checkpoint() -> None:
    job, commands = advance(replace(job_in(State.RUNNING), event_count=6), PauseAsked(), NOW)
    assert commands == [Stop(60.0, keep=True, refusable=7)]
    assert stop_under_way(job) == Stop(60.0, keep=True, refusable=7)
    assert stop_under_way(job_in(State.RUNNING)) is None


def test_a_pause_that_the_workers_refuse_has_failed_and_training_goes_on() -> None:
    refusal = WorkersChanged(2, "the disk is full", refuses_stop=True)
    job, commands = advance(job_in(State.PAUSING), refusal, NOW)
    assert (job.state, job.running_workers, commands) == (State.RUNNING, 2, [])
    assert job.state_reason == "the pause has failed, and training goes on: the disk is full"
    job, commands = advance(job_in(State.CANCELLING), refusal, NOW)
    assert (job.state, commands) == (State.CANCELLING, [Note("the disk is full")])


def test_a_job_that_finishes_while_it_pauses_has_succeeded() -> None:
    job, _ = advance(job_in(State.PAUSING), EVENTS["finished"], NOW)
    assert (job.state, job.result) == (State.PAUSING, DONE)
    with pytest.raises(JobIsStopping):
        advance(job, ResumeAsked(), NOW)
    job, _ = advance(job, GangGone(), NOW)
    assert (job.state, job.result) == (State.SUCCEEDED, DONE)


def test_workers_that_are_lost_while_they_pause_cost_no_restart_and_are_told() -> None:
    job, _ = advance(replace(job_in(State.PAUSING), newest_checkpoint=4), GangGone(LOST), NOW)
    assert (job.state, job.restarts) == (State.PAUSED, 0)
    assert job.state_reason == (
        "paused by the user; its workers ended early (A worker was killed.); "
        "when it is resumed it goes on from its newest checkpoint, of step 4"
    )


@pytest.mark.parametrize(
    ("state", "event", "words"),
    [
        (State.PAUSING, "resume", "is still pausing; wait until it is PAUSED"),
        (State.CANCELLING, "resume", "is being cancelled"),
        (State.CANCELLING, "pause", "is being cancelled"),
    ],
)
def test_what_must_wait_for_the_workers_to_stop_is_refused_in_words(state: State, event: str, words: str) -> None:
    with pytest.raises(JobIsStopping, match=words):
        advance(job_in(state), EVENTS[event], NOW)


def test_scaling_changes_the_spec_and_only_that() -> None:
    job = job_in(State.RUNNING)
    after, commands = advance(job, Scaled(4), NOW)
    assert (after.spec.resources.workers, job.spec.resources.workers) == (4, 2)
    assert commands == [Note("resources.workers changed from 2 to 4 by the user")]
    assert replace(after, spec=job.spec) == job
    assert advance(job, Scaled(2), NOW) == (job, [])


@pytest.mark.parametrize("workers", [-1, 0, 5])
def test_scaling_beyond_what_the_spec_allows_is_refused_with_the_limits(workers: int) -> None:
    with pytest.raises(InvalidRequest, match=f"workers is {workers}; allowed: 1 to 4") as caught:
        advance(job_in(State.RUNNING), Scaled(workers), NOW)
    assert caught.value.violations[0].field == "workers"


def test_workers_that_change_are_counted_and_told_once() -> None:
    job, commands = advance(job_in(State.RUNNING), WorkersChanged(2, "a worker joined"), NOW)
    assert (job.running_workers, commands) == (2, [Note("a worker joined")])
    assert advance(job, WorkersChanged(2), NOW) == (job, [])
    assert advance(job, GangGone(LOST), NOW)[0].running_workers == 0
