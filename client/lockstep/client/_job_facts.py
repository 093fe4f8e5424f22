"""What a job is, as the server told it last."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.client.types import Failure, JobState, Progress, Result, Timeline, to_datetime
from lockstep.v1 import job_pb2
from lockstep.v1.job_spec_pb2 import JobSpec


class JobFacts:
    """The facts of a job; nothing here asks the server.

    Args:
        proto: the message that they are read from.
    """

    def __init__(self, proto: job_pb2.Job) -> None:
        self.proto = proto

    @property
    def job_id(self) -> str:
        """Name of the job for every call; empty when it was only validated."""
        return self.proto.job_id

    @property
    def name(self) -> str:
        return self.proto.spec.name

    @property
    def labels(self) -> Mapping[str, str]:
        return dict(self.proto.spec.labels)

    @property
    def owner(self) -> str:
        """Who submitted it; empty from a server of an earlier version."""
        return self.proto.owner

    @property
    def spec(self) -> JobSpec:
        """The resolved spec, with every default filled in."""
        return self.proto.spec

    @property
    def state(self) -> JobState:
        return JobState.from_proto(self.proto.state)

    @property
    def state_reason(self) -> str:
        return self.proto.state_reason

    @property
    def attempt(self) -> int:
        """Number of the current or last attempt, from 1; 0 before the first."""
        return self.proto.attempt

    @property
    def restarts(self) -> int:
        """How many attempts were lost with all of their workers."""
        return self.proto.restarts

    @property
    def heals(self) -> int:
        """How often training went on without a worker that was lost, within its attempt."""
        return self.proto.heals

    @property
    def running_workers(self) -> int:
        """Workers that train now, of the spec.resources.workers that are wanted; 0 while the job holds none."""
        return self.proto.running_workers

    @property
    def create_time(self) -> datetime | None:
        """When the submit was stored, UTC."""
        return self._time("create_time", self.proto.create_time)

    @property
    def start_time(self) -> datetime | None:
        """When the current attempt took its first step, UTC; None before."""
        return self._time("start_time", self.proto.start_time)

    @property
    def end_time(self) -> datetime | None:
        """When the job ended, UTC; None before."""
        return self._time("end_time", self.proto.end_time)

    @property
    def timeline(self) -> Timeline:
        """When the current or last attempt reached each stage on its way to the first step."""
        return Timeline.from_proto(self.proto.timeline)

    @property
    def progress(self) -> Progress:
        return Progress.from_proto(self.proto.progress)

    @property
    def result(self) -> Result | None:
        """Set when the job succeeded."""
        return Result.from_proto(self.proto.result) if self.proto.HasField("result") else None

    @property
    def error(self) -> Failure | None:
        """Set when the job failed."""
        return Failure.from_proto(self.proto.error) if self.proto.HasField("error") else None

    @property
    def engine_version(self) -> str:
        return self.proto.engine_version

    @property
    def curve_digest(self) -> str:
        """SHA-256, hex, of what determines the curve: jobs that share it share their result metrics."""
        return self.proto.curve_digest

    @property
    def hardware_class(self) -> str:
        return self.proto.hardware_class

    def _time(self, field: str, value: Timestamp) -> datetime | None:
        return to_datetime(value) if self.proto.HasField(field) else None
