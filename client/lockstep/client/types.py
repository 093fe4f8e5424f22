"""What the server tells, as plain typed values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Self

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.v1 import catalog_service_pb2, checkpoint_service_pb2, job_pb2, log_service_pb2, metrics_service_pb2

if TYPE_CHECKING:
    from lockstep.client.job import Job


class JobState(StrEnum):
    """Where a job stands: QUEUED, STARTING, RUNNING, then SUCCEEDED, FAILED or CANCELLED; PAUSED is not an end."""

    UNSPECIFIED = "UNSPECIFIED"  # a state that a newer server has and this client does not know
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
        """Whether the job will never change again."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)

    @classmethod
    def from_proto(cls, value: job_pb2.JobState) -> JobState:
        if value in job_pb2.JobState.values():
            return cls(job_pb2.JobState.Name(value).removeprefix("JOB_STATE_"))
        return cls.UNSPECIFIED

    def to_proto(self) -> str:
        return f"JOB_STATE_{self.value}"


class MetricKind(StrEnum):
    """RESULT metrics are a function of the spec, the same bits in every run; TIMING metrics are not."""

    UNSPECIFIED = "UNSPECIFIED"
    RESULT = "RESULT"
    TIMING = "TIMING"

    @classmethod
    def from_proto(cls, value: metrics_service_pb2.MetricKind) -> MetricKind:
        if value in metrics_service_pb2.MetricKind.values():
            return cls(metrics_service_pb2.MetricKind.Name(value).removeprefix("METRIC_KIND_"))
        return cls.UNSPECIFIED

    def to_proto(self) -> str:
        return f"METRIC_KIND_{self.value}"


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric after one step."""

    name: str
    step: int
    epoch: float
    value: float
    kind: MetricKind

    @classmethod
    def from_proto(cls, point: metrics_service_pb2.MetricPoint) -> Self:
        return cls(point.name, point.step, point.epoch, point.value, MetricKind.from_proto(point.kind))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is. `total_steps` is 0 while the size of the data is not known."""

    step: int
    total_steps: int
    epoch: float

    @classmethod
    def from_proto(cls, progress: job_pb2.JobProgress) -> Self:
        return cls(progress.step, progress.total_steps, progress.epoch)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a job that succeeded. `weights_digest` is a SHA-256, hex."""

    weights_digest: str
    final_metrics: Mapping[str, float]

    @classmethod
    def from_proto(cls, result: job_pb2.JobResult) -> Self:
        return cls(result.weights_digest, dict(sorted(result.final_metrics.items())))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed. `reason` is a stable word; `field` and `traceback` may be empty; `rank` None."""

    reason: str
    message: str
    field: str
    traceback: str
    rank: int | None

    @classmethod
    def from_proto(cls, error: job_pb2.JobError) -> Self:
        rank = error.rank if error.HasField("rank") else None
        return cls(error.reason, error.message, error.field, error.traceback, rank)

    def __str__(self) -> str:
        message = f"{self.field}: {self.message}" if self.field and self.field not in self.message else self.message
        return message or self.reason or "the server gave no reason"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One entry of a job's log; `sequence` counts from 1 without gaps."""

    sequence: int
    time: datetime | None
    state: JobState
    attempt: int
    message: str

    @classmethod
    def from_proto(cls, event: job_pb2.JobEvent) -> Self:
        time = to_datetime(event.time) if event.HasField("time") else None
        return cls(event.sequence, time, JobState.from_proto(event.state), event.attempt, event.message)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a worker has printed, or with `is_notice` a word of the service on lines that were dropped there.

    `worker` is the worker's number within the attempt and stays; `rank` may change, and is None before it has one.
    """

    time: datetime | None
    attempt: int
    worker: int
    rank: int | None
    text: str
    is_notice: bool

    @classmethod
    def from_proto(cls, line: log_service_pb2.LogLine) -> Self:
        time = to_datetime(line.time) if line.HasField("time") else None
        rank = line.rank if line.HasField("rank") else None
        return cls(time, line.attempt, line.worker, rank, line.text, line.is_notice)


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of a checkpoint. `sha256` is that of its bytes, hex."""

    name: str
    size_bytes: int
    sha256: str

    @classmethod
    def from_proto(cls, file: checkpoint_service_pb2.CheckpointFile) -> Self:
        return cls(file.name, file.size_bytes, file.sha256)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a job after a step, as files in a folder.

    `uri` is a path of the server's machine or a URI; `weights_digest` means what it means in Result.
    """

    job_id: str
    step: int
    uri: str
    create_time: datetime | None
    files: tuple[CheckpointFile, ...]
    weights_digest: str

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.size_bytes for file in self.files)

    @classmethod
    def from_proto(cls, checkpoint: checkpoint_service_pb2.Checkpoint) -> Self:
        time = to_datetime(checkpoint.create_time) if checkpoint.HasField("create_time") else None
        files = tuple(map(CheckpointFile.from_proto, checkpoint.files))
        return cls(checkpoint.job_id, checkpoint.step, checkpoint.uri, time, files, checkpoint.weights_digest)


@dataclass(frozen=True, slots=True)
class Timeline:
    """How the current or last attempt of a job came to its first step; times in UTC, None for what is not reached.

    Attributes:
        submitted: the job was submitted.
        admitted: resources were granted.
        placed: all workers were up.
        data_ready: rank 0 had the data and the model.
        joined: all ranks had met.
        first_step: the first step was done.
        first_point: the first metric points had come to the server.
    """

    submitted: datetime | None = None
    admitted: datetime | None = None
    placed: datetime | None = None
    data_ready: datetime | None = None
    joined: datetime | None = None
    first_step: datetime | None = None
    first_point: datetime | None = None

    @classmethod
    def from_proto(cls, timeline: job_pb2.JobTimeline) -> Self:
        names = [field.name for field in fields(cls)]
        return cls(**{name: to_datetime(getattr(timeline, name)) for name in names if timeline.HasField(name)})

    def legs(self) -> list[tuple[str, float]]:
        """The stages that were reached, always in this order, each with its seconds since all before it were.

        So a stage that was reached before an earlier one has 0: a worker that was warm has its data before the last one
        is up, and a clock may have been set back.
        """
        times: list[tuple[str, datetime | None]] = [(field.name, getattr(self, field.name)) for field in fields(self)]
        reached = [(name, time) for name, time in times if time is not None]
        latest = accumulate((time for _, time in reached), max)
        return [
            (name, max(0.0, (time - before).total_seconds()))
            for (name, time), before in zip(reached[1:], latest, strict=False)
        ]


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """A job as it stood at one moment, with the events since the update before."""

    job: Job
    events: tuple[JobEvent, ...]


@dataclass(frozen=True, slots=True)
class CatalogParameter:
    """One thing that can be set on a model or a kind of data. `default` is None when there is none."""

    name: str
    type: str
    default: object
    limits: str
    required: bool

    @classmethod
    def from_proto(cls, parameter: catalog_service_pb2.CatalogParameter) -> Self:
        default = json.loads(parameter.default_json) if parameter.default_json else None
        return cls(parameter.name, parameter.type, default, parameter.limits, parameter.required)


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model, or one kind of data, that a spec can name."""

    name: str
    description: str
    parameters: tuple[CatalogParameter, ...]
    tasks: tuple[str, ...]

    @classmethod
    def from_proto(cls, entry: catalog_service_pb2.CatalogEntry) -> Self:
        parameters = tuple(CatalogParameter.from_proto(parameter) for parameter in entry.parameters)
        return cls(entry.name, entry.description, parameters, tuple(entry.tasks))


def to_datetime(timestamp: Timestamp) -> datetime:
    """A point in time in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)
