"""What is kept of a job beside itself: events, metric points, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from lockstep.server.jobs.job import State


@dataclass(frozen=True)
class StoredEvent:
    """One row of a job's log of events."""

    sequence: int
    time: datetime
    state: State
    attempt: int
    message: str


@dataclass(frozen=True)
class StoredPoint:
    """One metric point; `kind` is the number of the contract's MetricKind, `seq` the place in order of storing."""

    name: str
    step: int
    epoch: float
    value: float
    kind: int
    seq: int = 0


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint; `sha256` is that of its bytes, hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint that is kept: the folder `uri`, with its files."""

    job_id: str
    step: int
    uri: str
    create_time: datetime
    weights_digest: str
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Status:
    """What a report brings besides the job's own state.

    Attributes:
        points: new metric points.
        checkpoints: all that are whole now; None when nothing was said about them.
    """

    points: Sequence[StoredPoint] = ()
    checkpoints: Sequence[StoredCheckpoint] | None = None


NOTHING_NEW = Status()
