"""The lifecycle of a job as a pure function: events in, the next job and commands out.

QUEUED ──► STARTING ──► RUNNING ──► SUCCEEDED
  │ ▲         │  │         │ │
  │ └─────────┴──│─────────┘ └────► FAILED
  ▼              ▼
CANCELLED ◄── CANCELLING
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from lockstep.server.errors import JobHasEnded
from lockstep.server.job import (
    Admitted,
    CancelAsked,
    CanNeverFit,
    Command,
    Event,
    GangGone,
    GangJoined,
    Job,
    Launch,
    Progress,
    Reason,
    Reported,
    RetryAfter,
    State,
    Stop,
    WorkersForgotten,
)
from lockstep.v1.job_pb2 import JobError

CANCEL_GRACE_S = 10.0
PLACEMENT_RETRY_S = 3.0
MAX_PLACEMENT_FAILURES = 5

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
        JobHasEnded: a job that succeeded or failed cannot be cancelled.
        IllegalTransition: the event cannot happen in this state.
    """
    match job.state, event:
        case State.QUEUED, Admitted(node_ids=node_ids):
            return _admitted(job, node_ids)
        case State.QUEUED, CanNeverFit(numbers=numbers):
            return _failed(job, JobError(reason=Reason.PLACEMENT_FAILED, message=numbers), now)
        case State.STARTING, GangJoined():
            return replace(job, state_reason="the workers are up and read the data"), []
        case ((State.RUNNING | State.CANCELLING), GangJoined()):
            return job, []
        case ((State.STARTING | State.RUNNING), Reported()):
            return _reported(job, event, now)
        case State.CANCELLING, Reported(progress=progress):
            return replace(job, progress=progress), []
        case ((State.STARTING | State.RUNNING), GangGone(error=error)):
            return _gang_gone(job, error, now)
        case State.CANCELLING, (GangGone() | WorkersForgotten()):
            return _ended(job, State.CANCELLED, "cancelled by the user", now)
        case ((State.SUCCEEDED | State.FAILED | State.CANCELLED), GangGone()):
            return job, []
        case ((State.STARTING | State.RUNNING), WorkersForgotten(cause=cause)):
            return _requeued(job, f"{cause}; the job starts again from the beginning"), []
        case _, CancelAsked():
            return _cancel_asked(job, now)
        case _:
            raise IllegalTransition(job, event)


def _admitted(job: Job, node_ids: tuple[str, ...]) -> Step:
    workers, nodes = len(node_ids), len(set(node_ids))
    words = f"{workers} worker{'s' if workers > 1 else ''} on {nodes} node{'s' if nodes > 1 else ''}"
    started = replace(
        job,
        state=State.STARTING,
        state_reason=f"starting {words}",
        attempt=job.attempt + 1,
        start_time=None,
        progress=Progress(),
    )
    return started, [Launch(node_ids)]


def _reported(job: Job, report: Reported, now: datetime) -> Step:
    running = replace(
        job, progress=report.progress, hardware_class=report.hardware_class or job.hardware_class, placement_failures=0
    )
    if job.state is State.STARTING:
        running = replace(running, state=State.RUNNING, state_reason="training", start_time=now)
    if report.result is None:
        return running, []
    return _ended(replace(running, result=report.result), State.SUCCEEDED, "all steps are done", now)


def _gang_gone(job: Job, error: JobError | None, now: datetime) -> Step:
    if error is None:
        error = JobError(reason=Reason.WORKER_LOST, message="The workers ended before all steps were done.")
    if error.reason == Reason.PLACEMENT_FAILED:
        return _placement_failed(job, error, now)
    if error.reason != Reason.WORKER_LOST:
        return _failed(job, error, now)
    allowed = job.spec.recovery.max_restarts
    if job.restarts >= allowed:
        message = f"{error.message} The job may not start again: recovery.max_restarts is {allowed}."
        final = JobError()
        final.CopyFrom(error)
        final.message = message
        return _failed(job, final, now)
    restarts = job.restarts + 1
    words = f"attempt {job.attempt} lost a worker; restart {restarts} of at most {allowed}: {error.message}"
    return replace(_requeued(job, words), restarts=restarts), []


def _placement_failed(job: Job, error: JobError, now: datetime) -> Step:
    failures = job.placement_failures + 1
    if failures >= MAX_PLACEMENT_FAILURES:
        return _failed(replace(job, placement_failures=failures), error, now)
    words = f"the workers could not be placed and will be tried again ({failures} in a row): {error.message}"
    return replace(_requeued(job, words), placement_failures=failures), [RetryAfter(PLACEMENT_RETRY_S)]


def _cancel_asked(job: Job, now: datetime) -> Step:
    match job.state:
        case State.QUEUED:
            return _ended(job, State.CANCELLED, "cancelled by the user before it started", now)
        case State.STARTING | State.RUNNING:
            cancelling = replace(
                job, state=State.CANCELLING, state_reason="cancelled by the user; workers are stopping"
            )
            return cancelling, [Stop(CANCEL_GRACE_S)]
        case State.CANCELLING | State.CANCELLED:
            return job, []
        case State.SUCCEEDED | State.FAILED:
            raise JobHasEnded(f"job {job.job_id} has {job.state.name.lower()}; only a job that has not ended can stop")


def _requeued(job: Job, words: str) -> Job:
    return replace(job, state=State.QUEUED, state_reason=words, start_time=None, progress=Progress())


def _failed(job: Job, error: JobError, now: datetime) -> Step:
    return _ended(replace(job, error=error), State.FAILED, f"{error.reason}: {error.message}", now)


def _ended(job: Job, state: State, words: str, now: datetime) -> Step:
    return replace(job, state=state, state_reason=words, end_time=now), []
