"""The lifecycle of a job as a pure function: events in, the next job and commands out.

   ┌──────────────────────────────────── PAUSED ◄──┐
   ▼                                       ▲       │
QUEUED ──► STARTING ──► RUNNING ◄─► PAUSING ───────┘  (back when no checkpoint can be written)
  │ ▲         │  │        │ │ │        │
  │ └─────────┴──│────────┘ │ └────────┴──► SUCCEEDED, FAILED
  ▼              ▼          ▼
CANCELLED ◄── CANCELLING ◄──┘  (also from PAUSING; from PAUSED a job is CANCELLED at once)
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from lockstep.contract.failures import FailureReason
from lockstep.contract.wording import count
from lockstep.server.errors import InvalidRequest, JobHasEnded, JobIsStopping
from lockstep.server.jobs.job import (
    Admitted,
    CancelAsked,
    CanNeverFit,
    Command,
    Event,
    GangGone,
    GangJoined,
    Job,
    Launch,
    Note,
    PauseAsked,
    Reported,
    ResumeAsked,
    RetryAfter,
    Scaled,
    State,
    Stop,
    WorkersChanged,
    WorkersForgotten,
)
from lockstep.server.jobs.timeline import Timeline
from lockstep.v1.job_pb2 import JobError
from lockstep.v1.job_spec_pb2 import JobSpec

CANCEL_GRACE_S = 10.0
# Longer, since a checkpoint is written.
PAUSE_GRACE_S = 60.0
PLACEMENT_RETRY_S = 3.0
MAX_PLACEMENT_FAILURES = 5
# A node that took workers along is still counted for a moment.
FIRST_RESTART_DELAY_S = 1.0
LONGEST_RESTART_DELAY_S = 60.0

Step = tuple[Job, list[Command]]


class IllegalTransition(Exception):
    """An event that cannot happen in this state: the coordinator has made a mistake."""

    def __init__(self, job: Job, event: Event) -> None:
        super().__init__(f"job {job.job_id} in state {job.state.name} cannot take {type(event).__name__}")
        self.job_id = job.job_id
        self.state = job.state
        self.event = event


def advance(job: Job, event: Event, now: datetime) -> Step:
    """Apply one event to a job.

    Args:
        job: the job as it stands.
        event: what happened.
        now: when it happened.

    Returns:
        The job as it stands then (the same object when nothing has changed), and what has to be done.

    Raises:
        JobHasEnded: what the user asks for makes no sense for a job that has ended.
        JobIsStopping: what the user asks for makes no sense before the job has stopped.
        InvalidRequest: the user asks for more or fewer workers than the job may have.
        IllegalTransition: the event cannot happen in this state.
    """
    match event:
        case CancelAsked():
            return _cancel_asked(job, now)
        case PauseAsked():
            return _pause_asked(job)
        case ResumeAsked():
            return _resume_asked(job)
        case Scaled(workers=workers):
            return _scaled(job, workers)
        case Admitted(node_ids=node_ids) if job.state is State.QUEUED:
            return _admitted(job, node_ids, now)
        case CanNeverFit(numbers=numbers) if job.state is State.QUEUED:
            return _failed(job, JobError(reason=FailureReason.PLACEMENT_FAILED, message=numbers), now)
        case GangJoined() | WorkersChanged() | GangGone() if job.state.has_ended:
            return job, []  # The last that is heard of its workers.
        case GangJoined(workers=workers) if job.state.has_workers:
            return _joined(job, workers, now), []
        case Reported() if job.state.has_workers:
            return _reported(job, event, now)
        case WorkersChanged() if job.state.has_workers:
            return _workers_changed(job, event)
        case GangGone() if job.state.has_workers:
            return _gang_gone(job, event, now)
        case WorkersForgotten(cause=cause) if job.state.has_workers:
            return _workers_forgotten(job, cause, now)
        case _:
            raise IllegalTransition(job, event)


def stop_under_way(job: Job) -> Stop | None:
    """Return the order that a job in its state has given its workers; None when they shall train."""
    match job.state:
        case State.CANCELLING:
            return Stop(CANCEL_GRACE_S)
        case State.PAUSING:
            return _pause_of(job)
        case _:
            return None


def _pause_of(job: Job) -> Stop:
    # There are more events at each pause than at the one before.
    return Stop(PAUSE_GRACE_S, keep=True, refusable=job.event_count + 1)


# What the scheduler, the launcher and the workers say.


def _admitted(job: Job, node_ids: tuple[str, ...], now: datetime) -> Step:
    workers, nodes = len(node_ids), len(set(node_ids))
    words = f"starting {count(workers, 'worker')} on {count(nodes, 'node')}"
    if workers < job.spec.resources.workers:
        words += (
            f", of {job.spec.resources.workers} that it wants; the others join when there is room, now or in training"
        )
    started = replace(
        job,
        state=State.STARTING,
        state_reason=words,
        attempt=job.attempt + 1,
        generation=0,
        sequence=0,
        start_time=None,
        timeline=Timeline(admitted=now),
    )
    return started, [Launch(node_ids)]


def _joined(job: Job, workers: int, now: datetime) -> Job:
    job = replace(job, timeline=job.timeline.reaching(placed=now))
    if job.state is State.STARTING:
        verb = "is" if workers == 1 else "are"
        job = replace(job, state_reason=f"{count(workers, 'worker')} {verb} up and reading the data")
    return job if job.running_workers == workers else replace(job, running_workers=workers)


def _reported(job: Job, report: Reported, now: datetime) -> Step:
    newest = job.newest_checkpoint
    if report.checkpoint_steps is not None:
        newest = max(report.checkpoint_steps, default=None)
    hardware = report.hardware_class or job.hardware_class
    has_begun = report.progress.total_steps > 0  # else rank 0 only tells what it has found, such as its checkpoints
    after = replace(
        job,
        progress=report.progress if has_begun else job.progress,
        hardware_class=hardware,
        placement_failures=0,
        heals=job.heals + report.heals,
        generation=report.generation,
        sequence=report.sequence,
        newest_checkpoint=newest,
        timeline=job.timeline.reaching(**report.reached.stages()),
    )
    notes: list[Command] = [Note(text) for text in report.notes]
    if job.hardware_class not in ("", hardware):
        notes.insert(0, Note(_other_hardware(job.hardware_class, hardware)))
    if job.state is State.STARTING and has_begun:
        # From the beginning it starts anew where no checkpoint can be used: its progress is then that of a new job.
        goes_on = job.progress.step > 0 and report.progress.step > 0
        words = f"training goes on from step {report.progress.step}" if goes_on else "training has begun"
        after = replace(after, state=State.RUNNING, state_reason=words, start_time=now)
    if job.state is not State.CANCELLING and report.result is not None:
        after = replace(after, result=report.result)  # The job has succeeded once its workers can be had again.
    return after, notes


def _other_hardware(before: str, now: str) -> str:
    return (
        f"THE HARDWARE DIFFERS: the job trains on {now} now, and trained on {before} before; "
        "from here on its bits may differ from those of an undisturbed run"
    )


def _workers_changed(job: Job, event: WorkersChanged) -> Step:
    if event.refuses_stop and job.state is State.PAUSING:
        words = f"the pause has failed, and training goes on: {event.message}"
        return replace(job, state=State.RUNNING, state_reason=words, running_workers=event.running_workers), []
    notes: list[Command] = [Note(event.message)] if event.message else []
    if job.running_workers == event.running_workers:
        return job, notes
    return replace(job, running_workers=event.running_workers), notes


def _gang_gone(job: Job, event: GangGone, now: datetime) -> Step:
    error = event.error
    if job.state is State.CANCELLING:
        return _ended(job, State.CANCELLED, "cancelled by the user", now)
    if job.result is not None:
        return _succeeded(job, now)
    is_the_jobs = error is not None and error.reason not in (FailureReason.WORKER_LOST, FailureReason.PLACEMENT_FAILED)
    if error is not None and is_the_jobs:
        return _failed(job, error, now)
    if job.state is State.PAUSING:
        return _paused(job, f"its workers ended early ({error.message})" if error is not None else "")
    if event.is_too_small:
        return _too_small(job)
    if error is None:
        error = JobError(reason=FailureReason.WORKER_LOST, message="The workers ended before all steps were done.")
    if error.reason == FailureReason.PLACEMENT_FAILED:
        return _placement_failed(job, error, now)
    return _all_lost(job, error, now)


def _too_small(job: Job) -> Step:
    job, delay_s, in_a_row = _ended_early(job)
    least = job.spec.resources.min_workers
    words = f"fewer workers were left than resources.min_workers, which is {least}; the job {_goes_on(job)}"
    if in_a_row:
        words += f"; {in_a_row}, so it waits {delay_s:g} s"
    return _requeued(job, words), [RetryAfter(delay_s)]


def _all_lost(job: Job, error: JobError, now: datetime) -> Step:
    allowed = job.spec.recovery.max_restarts
    if job.restarts >= allowed:
        return _failed(
            job, _with_words(error, f"The job may not start again: recovery.max_restarts is {allowed}."), now
        )
    job, delay_s, in_a_row = _ended_early(job)
    words = (
        f"attempt {job.attempt} lost all of its workers; restart {job.restarts + 1} of at most {allowed} in "
        f"{delay_s:g} s{f' ({in_a_row})' if in_a_row else ''}, which {_goes_on(job)}: {error.message}"
    )
    return replace(_requeued(job, words), restarts=job.restarts + 1), [RetryAfter(delay_s)]


def _ended_early(job: Job) -> tuple[Job, float, str]:
    """Count an attempt that has ended early: the next waits longer each time, unless the job has got further.

    Returns:
        The job, seconds to wait, and words if it has not got further.
    """
    step = job.progress.step
    in_a_row = 1 if step > job.ended_early_at_step else job.ended_early_in_a_row + 1
    delay_s = min(FIRST_RESTART_DELAY_S * 2.0 ** min(in_a_row - 1, 10), LONGEST_RESTART_DELAY_S)
    job = replace(job, ended_early_in_a_row=in_a_row, ended_early_at_step=max(step, job.ended_early_at_step))
    return job, delay_s, f"that makes {in_a_row} attempts in a row that got no further" if in_a_row > 1 else ""


def _placement_failed(job: Job, error: JobError, now: datetime) -> Step:
    failures = job.placement_failures + 1
    if failures >= MAX_PLACEMENT_FAILURES:
        return _failed(replace(job, placement_failures=failures), error, now)
    words = f"the workers could not be placed and will be tried again ({failures} in a row): {error.message}"
    return replace(_requeued(job, words), placement_failures=failures), [RetryAfter(PLACEMENT_RETRY_S)]


def _workers_forgotten(job: Job, cause: str, now: datetime) -> Step:
    match job.state:
        case State.CANCELLING:
            return _ended(job, State.CANCELLED, "cancelled by the user", now)
        case _ if job.result is not None:
            return _succeeded(job, now)
        case State.PAUSING:
            return _paused(job, cause)
        case _:
            return _requeued(job, f"{cause}; the job {_goes_on(job)}"), []


# What the user asks for.


def _cancel_asked(job: Job, now: datetime) -> Step:
    match job.state:
        case State.QUEUED:
            return _ended(job, State.CANCELLED, "cancelled by the user before it started", now)
        case State.PAUSED:
            return _ended(job, State.CANCELLED, "cancelled by the user while it was paused", now)
        case State.STARTING | State.RUNNING | State.PAUSING:
            words = "cancelled by the user; workers are stopping"
            return replace(job, state=State.CANCELLING, state_reason=words, result=None), [Stop(CANCEL_GRACE_S)]
        case State.CANCELLING | State.CANCELLED:
            return job, []
        case State.SUCCEEDED | State.FAILED:
            raise _has_ended(job, "cancelled")


def _pause_asked(job: Job) -> Step:
    match job.state:
        case State.QUEUED:
            return _paused(job)
        case State.STARTING | State.RUNNING:
            words = "paused by the user; the workers write a checkpoint and stop"
            job = replace(job, state=State.PAUSING, state_reason=words)
            return job, [_pause_of(job)]
        case State.PAUSING | State.PAUSED:
            return job, []
        case State.CANCELLING:
            raise JobIsStopping(f"{job.job_id} is being cancelled; it cannot be paused any more")
        case State.SUCCEEDED | State.FAILED | State.CANCELLED:
            raise _has_ended(job, "paused")


def _resume_asked(job: Job) -> Step:
    match job.state:
        case State.PAUSED:
            return _requeued(job, f"resumed by the user; the job waits for resources and {_goes_on(job)}"), []
        case State.QUEUED | State.STARTING | State.RUNNING:
            return job, []
        case State.PAUSING:
            raise JobIsStopping(f"{job.job_id} is still pausing; wait until it is PAUSED")
        case State.CANCELLING:
            raise JobIsStopping(f"{job.job_id} is being cancelled; it cannot be resumed")
        case State.SUCCEEDED | State.FAILED | State.CANCELLED:
            raise _has_ended(job, "resumed")


def _scaled(job: Job, workers: int) -> Step:
    if job.state.has_ended:
        raise _has_ended(job, "changed")
    resources = job.spec.resources
    if not resources.min_workers <= workers <= resources.shards:
        raise InvalidRequest.of(
            "workers",
            f"is {workers}; allowed: {resources.min_workers} to {resources.shards}, "
            "which are resources.min_workers and resources.shards of the job",
        )
    if workers == resources.workers:
        return job, []
    spec = JobSpec()
    spec.CopyFrom(job.spec)
    spec.resources.workers = workers
    words = f"resources.workers changed from {resources.workers} to {workers} by the user"
    return replace(job, spec=spec), [Note(words)]


# Steps that several of them share.


def _requeued(job: Job, words: str) -> Job:
    return replace(job, state=State.QUEUED, state_reason=words, start_time=None, running_workers=0)


def _paused(job: Job, but: str = "") -> Step:
    words = f"paused by the user{'; ' if but else ''}{but}; when it is resumed it {_goes_on(job)}"
    return replace(job, state=State.PAUSED, state_reason=words, start_time=None, running_workers=0), []


def _failed(job: Job, error: JobError, now: datetime) -> Step:
    if job.newest_checkpoint is not None:
        error = _with_words(error, f"The last good checkpoint is of step {job.newest_checkpoint}.")
    # What went wrong is told by the error, and by nothing else: it would be read twice.
    return _ended(replace(job, error=error), State.FAILED, error.reason, now)


def _succeeded(job: Job, now: datetime) -> Step:
    return _ended(job, State.SUCCEEDED, "all steps are done", now)


def _ended(job: Job, state: State, words: str, now: datetime) -> Step:
    return replace(job, state=state, state_reason=words, end_time=now, running_workers=0), []


def _goes_on(job: Job) -> str:
    if job.newest_checkpoint is None:
        return "starts from the beginning, since it has no checkpoint"
    return f"goes on from its newest checkpoint, of step {job.newest_checkpoint}"


def _with_words(error: JobError, words: str) -> JobError:
    longer = JobError()
    longer.CopyFrom(error)
    longer.message = f"{error.message} {words}"
    return longer


def _has_ended(job: Job, what: str) -> JobHasEnded:
    return JobHasEnded(f"{job.job_id} has {_ENDS[job.state]}; only a job that has not ended can be {what}")


_ENDS = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.CANCELLED: "been cancelled"}
