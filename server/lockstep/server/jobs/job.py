"""A job, its states, what can happen to it and what then has to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from lockstep.server.jobs.timeline import NOTHING_REACHED, Timeline
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec

# Until there is authentication, everybody is the same person. Jobs are stored with it.
PRINCIPAL = "local"


class State(Enum):
    """Where a job stands; the names are those of the contract's JobState without its prefix."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CANCELLING = "CANCELLING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"

    @property
    def has_ended(self) -> bool:
        return self in ENDED

    @property
    def has_workers(self) -> bool:
        """Whether an attempt is under way: workers hold resources, and their reports are taken."""
        return self in WORKING


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE = frozenset(State) - ENDED
WORKING = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING})


@dataclass(frozen=True)
class Progress:
    """How far training is.

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
        ended_early_in_a_row: how many attempts in a row lost their workers and got no further; never stored.
        ended_early_at_step: the furthest step at which one of them ended; never stored.
        heals: how often training went on without a worker that was lost.
        running_workers: workers that train now; known only while the server and its launcher run, never stored.
        event_count: sequence number of the last event in the job's log.
        generation: the newest membership of the current attempt's process group that has reported.
        sequence: number of its last report that is stored.
        newest_checkpoint: step of the newest checkpoint that is kept; None when there is none.
        owner: the principal who submitted it.
        timeline: how the current attempt came to its first step.
        result: what came out; users see it when the job has SUCCEEDED, which is once its workers are gone.
        init_from_uri: folder of the checkpoint that `spec.init_from` means; empty for fresh weights.
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
    ended_early_in_a_row: int = 0
    ended_early_at_step: int = -1
    heals: int = 0
    running_workers: int = 0
    start_time: datetime | None = None
    end_time: datetime | None = None
    progress: Progress = field(default_factory=Progress)
    result: JobResult | None = None
    error: JobError | None = None
    hardware_class: str = ""
    event_count: int = 0
    generation: int = 0
    sequence: int = 0
    newest_checkpoint: int | None = None
    init_from_uri: str = ""
    owner: str = PRINCIPAL
    timeline: Timeline = NOTHING_REACHED


# What can happen.


@dataclass(frozen=True)
class Admitted:
    """The scheduler granted resources: the node of each rank."""

    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class GangJoined:
    """All `workers` are up and have joined."""

    workers: int


@dataclass(frozen=True)
class Reported:
    """Rank 0 of the current attempt said how far it is, and in its last report what came out.

    Attributes:
        generation, sequence: the number of the report.
        heals: how often training went on without a lost worker since the report before.
        notes: what people should know.
        checkpoint_steps: steps of all checkpoints that are whole now; None when nothing was said about them.
        reached: stages of the timeline that it was told of.
    """

    progress: Progress
    hardware_class: str = ""
    result: JobResult | None = None
    generation: int = 1
    sequence: int = 1
    heals: int = 0
    notes: tuple[str, ...] = ()
    checkpoint_steps: tuple[int, ...] | None = None
    reached: Timeline = NOTHING_REACHED


@dataclass(frozen=True)
class WorkersChanged:
    """The current attempt has lost workers, taken some in or let some go; `message` says so unless it is empty.

    With `refuses_stop` they train on although they were told to pause, for the reason in `message`.
    """

    running_workers: int
    message: str = ""
    refuses_stop: bool = False


@dataclass(frozen=True)
class GangGone:
    """The current attempt's workers are gone.

    Attributes:
        error: why, unless it was in order.
        is_too_small: fewer than min_workers were left; they wrote a checkpoint and went.
    """

    error: JobError | None = None
    is_too_small: bool = False


@dataclass(frozen=True)
class CancelAsked:
    """The user wants the job to stop."""


@dataclass(frozen=True)
class PauseAsked:
    """The user wants the job to free its resources and to wait."""


@dataclass(frozen=True)
class ResumeAsked:
    """The user wants a paused job to go on."""


@dataclass(frozen=True)
class Scaled:
    """The user wants the job to run with so many workers."""

    workers: int


@dataclass(frozen=True)
class WorkersForgotten:
    """The workers are gone for a reason that is not the job's; `cause` says which."""

    cause: str


@dataclass(frozen=True)
class CanNeverFit:
    """The whole cluster is too small; `numbers` says by how much."""

    numbers: str


Event = (
    Admitted
    | GangJoined
    | Reported
    | WorkersChanged
    | GangGone
    | CancelAsked
    | PauseAsked
    | ResumeAsked
    | Scaled
    | WorkersForgotten
    | CanNeverFit
)


# What then has to be done.


@dataclass(frozen=True)
class Launch:
    """Start the gang of the current attempt."""

    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """Stop the gang of the current attempt; kill it after `grace_s` seconds. With `keep` it writes a checkpoint.

    With `refusable`, which grows from one order for a job to the next, it goes on when that cannot be written.
    """

    grace_s: float
    keep: bool = False
    refusable: int = 0


@dataclass(frozen=True)
class RetryAfter:
    """Leave the job in the queue, but do not try to place it for `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True)
class Note:
    """Write an event that is no change of state."""

    message: str


Command = Launch | Stop | RetryAfter | Note
