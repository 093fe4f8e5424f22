"""A job, its states, what can happen to it and what then has to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec


class State(Enum):
    """Where a job stands; the names are those of the contract's JobState without its prefix."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CANCELLING = "CANCELLING"

    @property
    def has_ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - ENDED


class Reason:
    """The stable words of JobError.reason that the coordinator itself looks at."""

    WORKER_LOST = "WORKER_LOST"
    PLACEMENT_FAILED = "PLACEMENT_FAILED"


@dataclass(frozen=True)
class Progress:
    """How far the current attempt is.

    Attributes:
        step: steps done.
        total_steps: steps in all; 0 while unknown.
        epoch: epochs done, with the fraction of the current one.
    """

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0


@dataclass(frozen=True)
class Job:
    """One training run. The messages in it are never changed once they are here.

    Attributes:
        number: place in the order of submits, from 1; the queue's order.
        placement_failures: how many attempts in a row could not be placed.
        event_count: sequence number of the last event in the job's log.
    """

    job_id: str
    number: int
    spec: JobSpec
    state: State
    state_reason: str
    create_time: datetime
    engine_version: str
    curve_digest: str
    attempt: int = 0
    restarts: int = 0
    placement_failures: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    progress: Progress = field(default_factory=Progress)
    result: JobResult | None = None
    error: JobError | None = None
    hardware_class: str = ""
    event_count: int = 0


# What can happen.


@dataclass(frozen=True)
class Admitted:
    """The scheduler granted resources: the node of each rank."""

    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class GangJoined:
    """All workers are up and have joined."""


@dataclass(frozen=True)
class Reported:
    """Rank 0 of the current attempt said how far it is, and in its last report what came out."""

    progress: Progress
    hardware_class: str = ""
    result: JobResult | None = None


@dataclass(frozen=True)
class GangGone:
    """The current attempt's workers are gone; `error` says why unless it was in order."""

    error: JobError | None = None


@dataclass(frozen=True)
class CancelAsked:
    """The user wants the job to stop."""


@dataclass(frozen=True)
class WorkersForgotten:
    """Whoever looked after the workers is gone, and their reports are no longer taken; `cause` says why."""

    cause: str


@dataclass(frozen=True)
class CanNeverFit:
    """The whole cluster is too small; `numbers` says by how much."""

    numbers: str


Event = Admitted | GangJoined | Reported | GangGone | CancelAsked | WorkersForgotten | CanNeverFit


# What then has to be done.


@dataclass(frozen=True)
class Launch:
    """Start the gang of the current attempt."""

    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """Stop the gang of the current attempt; kill it after `grace_s` seconds."""

    grace_s: float


@dataclass(frozen=True)
class RetryAfter:
    """Leave the job in the queue, but do not try to place it for `delay_s` seconds."""

    delay_s: float


Command = Launch | Stop | RetryAfter
