from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lockstep.server.errors import JobHasEnded
from lockstep.server.job import (
    ENDED,
    Admitted,
    CancelAsked,
    CanNeverFit,
    Event,
    GangGone,
    GangJoined,
    Job,
    Launch,
    Progress,
    Reported,
    RetryAfter,
    State,
    Stop,
    WorkersForgotten,
)
from lockstep.server.lifecycle import MAX_PLACEMENT_FAILURES, IllegalTransition, advance
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec, RecoverySpec

NOW = datetime(2030, 1, 2, tzinfo=UTC)
DONE = JobResult(weights_digest="d")
LOST = JobError(reason="WORKER_LOST", message="A worker was killed.")
BROKEN = JobError(reason="USER_ERROR", message="ValueError")
UNPLACED = JobError(reason="PLACEMENT_FAILED", message="no room")

EVENTS: dict[str, Event] = {
    "admitted": Admitted(("a", "b")),
    "joined": GangJoined(),
    "reported": Reported(Progress(3, 10, 0.3), "cpu"),
    "finished": Reported(Progress(10, 10, 1.0), "cpu", DONE),
    "gone": GangGone(),
    "lost": GangGone(LOST),
    "broken": GangGone(BROKEN),
    "unplaced": GangGone(UNPLACED),
    "cancel": CancelAsked(),
    "forgotten": WorkersForgotten("the launcher was lost"),
    "never": CanNeverFit("too small"),
}

# What each event makes of a job in each state; what is not here is illegal.
LEGAL: dict[State, dict[str, State]] = {
    State.QUEUED: {"admitted": State.STARTING, "cancel": State.CANCELLED, "never": State.FAILED},
    State.STARTING: {
        "joined": State.STARTING,
        "reported": State.RUNNING,
        "finished": State.SUCCEEDED,
        "gone": State.QUEUED,
        "lost": State.QUEUED,
        "broken": State.FAILED,
        "unplaced": State.QUEUED,
        "cancel": State.CANCELLING,
        "forgotten": State.QUEUED,
    },
    State.RUNNING: {
        "joined": State.RUNNING,
        "reported": State.RUNNING,
        "finished": State.SUCCEEDED,
        "gone": State.QUEUED,
        "lost": State.QUEUED,
        "broken": State.FAILED,
        "unplaced": State.QUEUED,
        "cancel": State.CANCELLING,
        "forgotten": State.QUEUED,
    },
    State.CANCELLING: {
        "joined": State.CANCELLING,
        "reported": State.CANCELLING,
        "finished": State.CANCELLING,
        "gone": State.CANCELLED,
        "lost": State.CANCELLED,
        "broken": State.CANCELLED,
        "unplaced": State.CANCELLED,
        "cancel": State.CANCELLING,
        "forgotten": State.CANCELLED,
    },
    State.SUCCEEDED: dict.fromkeys(("gone", "lost", "broken", "unplaced"), State.SUCCEEDED),
    State.FAILED: dict.fromkeys(("gone", "lost", "broken", "unplaced"), State.FAILED),
    State.CANCELLED: dict.fromkeys(("gone", "lost", "broken", "unplaced", "cancel"), State.CANCELLED),
}


def job_in(state: State, max_restarts: int = 2) -> Job:
    return Job(
        job_id="job-1",
        number=1,
        spec=JobSpec(recovery=RecoverySpec(max_restarts=max_restarts)),
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
    expected = LEGAL[state].get(event)
    if expected is None:
        refusal = JobHasEnded if event == "cancel" else IllegalTransition
        with pytest.raises(refusal):
            advance(job, EVENTS[event], NOW)
        return
    after, _ = advance(job, EVENTS[event], NOW)
    assert after.state is expected
    assert (after.end_time == NOW) is (expected in ENDED and state not in ENDED)
    if after is not job:
        assert after.state_reason or after.state is state


def test_admission_begins_the_next_attempt_and_launches_it_where_it_was_placed() -> None:
    job, commands = advance(job_in(State.QUEUED), Admitted(("a", "b")), NOW)
    assert job.attempt == 1
    assert commands == [Launch(("a", "b"))]


def test_the_first_report_starts_the_clock_and_later_ones_leave_it() -> None:
    job, _ = advance(job_in(State.STARTING), Reported(Progress(1, 9), "cpu x"), NOW)
    later, _ = advance(job, Reported(Progress(2, 9)), NOW.replace(year=2031))
    assert (later.start_time, later.hardware_class, later.progress.step) == (NOW, "cpu x", 2)


def test_a_result_ends_the_job_with_it() -> None:
    job, _ = advance(job_in(State.RUNNING), EVENTS["finished"], NOW)
    assert (job.result, job.end_time) == (DONE, NOW)


def test_lost_workers_are_replaced_until_the_restarts_are_used_up() -> None:
    job = job_in(State.RUNNING, max_restarts=1)
    job, _ = advance(job, GangGone(LOST), NOW)
    assert (job.state, job.restarts, job.progress) == (State.QUEUED, 1, Progress())
    job, _ = advance(job, Admitted(("a",)), NOW)
    job, _ = advance(job, GangGone(LOST), NOW)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.reason == "WORKER_LOST"
    assert "may not start again: recovery.max_restarts is 1." in job.error.message


def test_workers_that_leave_without_a_word_count_as_lost() -> None:
    job, _ = advance(job_in(State.RUNNING, max_restarts=0), GangGone(), NOW)
    assert job.error is not None
    assert (job.state, job.error.reason) == (State.FAILED, "WORKER_LOST")


def test_an_error_of_the_users_own_is_never_tried_again() -> None:
    job, _ = advance(job_in(State.RUNNING), GangGone(BROKEN), NOW)
    assert (job.state, job.error, job.restarts) == (State.FAILED, BROKEN, 0)


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


def test_a_result_that_comes_after_cancel_is_not_taken() -> None:
    job, _ = advance(job_in(State.CANCELLING), EVENTS["finished"], NOW)
    assert (job.state, job.result) == (State.CANCELLING, None)


def test_a_lost_launcher_costs_no_restart() -> None:
    job, _ = advance(replace(job_in(State.RUNNING), restarts=2), WorkersForgotten("the launcher was lost"), NOW)
    assert (job.state, job.restarts, job.start_time) == (State.QUEUED, 2, None)
    assert job.state_reason.startswith("the launcher was lost")
