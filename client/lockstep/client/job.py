"""A job as its user holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, overload

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.client import checkpoints, logs, metrics
from lockstep.client import ledger as ledgers
from lockstep.client._connection import UNARY_TIMEOUT_S
from lockstep.client.errors import DeadlineExceeded, InvalidSpec, JobCancelled, JobFailed, LockstepError, WaitTimeout
from lockstep.client.ledger import Ledger
from lockstep.client.types import (
    Checkpoint,
    Failure,
    JobEvent,
    JobState,
    JobUpdate,
    LogLine,
    MetricKind,
    MetricPoint,
    Progress,
    Result,
    Timeline,
    to_datetime,
)
from lockstep.v1 import job_pb2, job_service_pb2
from lockstep.v1.job_spec_pb2 import JobSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lockstep.client.client import Client


class Job:
    """A job as the server last told it; `refresh`, `watch`, `wait`, `cancel`, `pause`, `resume`, `scale` ask again.

    Raises, from every method that calls the server: LockstepError.
    """

    def __init__(self, client: Client, proto: job_pb2.Job) -> None:
        self._client = client
        self.proto = proto

    def __repr__(self) -> str:
        return f"<Job {self.job_id or '(not stored)'} {self.name} {self.state}>"

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

    def refresh(self) -> Self:
        """Read the job again."""
        request = job_service_pb2.GetJobRequest(job_id=self._stored_id())
        self.proto = self._client._connection.call(self._client._jobs.GetJob, request)
        return self

    def cancel(self) -> Self:
        """Ask the job to stop; it ends as CANCELLED, at once or within a step.

        Raises:
            FailedPrecondition: it has ended otherwise.
        """
        request = job_service_pb2.CancelJobRequest(job_id=self._stored_id())
        self.proto = self._client._connection.call(self._client._jobs.CancelJob, request)
        return self

    def pause(self) -> Self:
        """Ask the job to write a checkpoint and free its resources; it is PAUSED at once or within a step.

        Harmless when it is pausing or paused.

        Raises:
            FailedPrecondition: it has ended or is being cancelled.
        """
        request = job_service_pb2.PauseJobRequest(job_id=self._stored_id())
        self.proto = self._client._connection.call(self._client._jobs.PauseJob, request)
        return self

    def resume(self) -> Self:
        """Put a paused job back into the queue, at its old place; it goes on exactly where it was.

        Harmless when it is queued or runs.

        Raises:
            FailedPrecondition: it has ended, or is still pausing.
        """
        request = job_service_pb2.ResumeJobRequest(job_id=self._stored_id())
        self.proto = self._client._connection.call(self._client._jobs.ResumeJob, request)
        return self

    def scale(self, workers: int) -> Self:
        """Change how many workers the job runs with, from the next step on; the curve stays as it is.

        Args:
            workers: from spec.resources.min_workers to spec.resources.shards.

        Raises:
            InvalidSpec: they are not.
            FailedPrecondition: it has ended.
        """
        request = job_service_pb2.UpdateJobRequest(job_id=self._stored_id(), workers=workers)
        call, method = self._client._connection.call, self._client._jobs.UpdateJob
        self.proto = call(method, request, invalid_argument=InvalidSpec)
        return self

    def events(self) -> list[JobEvent]:
        """Read all that has happened to the job up to now, and the job itself with it."""
        events: list[JobEvent] = []
        while True:
            # A watch begins with the job and past events, a page of them; one without any is past the last page.
            update = next(self._watch(UNARY_TIMEOUT_S, after=events[-1].sequence if events else 0), None)
            if update is None or not update.events:
                return events
            events += update.events

    def watch(self) -> Iterator[JobUpdate]:
        """Yield the job with its past events, then each change, until it has ended; while it is paused nothing comes.

        A broken connection is opened again; no event is lost or comes twice.
        """
        return self._watch(timeout_s=None)

    def wait(self, timeout_s: float | None = None, progress: bool = False) -> Self:
        """Wait until the job has succeeded. A paused job has not ended: this goes on waiting until it is resumed.

        Args:
            timeout_s: seconds to wait; None waits for ever.
            progress: show epoch, workers, loss, accuracy and samples per second on standard error.

        Raises:
            JobFailed: it failed.
            JobCancelled: it was cancelled.
            WaitTimeout: it has not ended in time. It goes on.
        """
        if not self.state.has_ended:
            try:
                self._wait(timeout_s, progress)
            except DeadlineExceeded as error:
                if timeout_s is None:
                    raise
                message = f"{self.job_id} has not ended after {timeout_s:g} s: it is {self.state}"
                raise WaitTimeout(message, code=error.code) from error
        if self.state is JobState.FAILED:
            raise JobFailed(f"{self.job_id} failed: {self.error or self.state_reason}", self)
        if self.state is JobState.CANCELLED:
            raise JobCancelled(f"{self.job_id} was cancelled", self)
        return self

    @overload
    def metrics(
        self,
        names: Iterable[str] | None = None,
        after_step: int = 0,
        kind: MetricKind | str | None = None,
        *,
        follow: Literal[False] = False,
    ) -> list[MetricPoint]: ...
    @overload
    def metrics(
        self,
        names: Iterable[str] | None = None,
        after_step: int = 0,
        kind: MetricKind | str | None = None,
        *,
        follow: Literal[True],
    ) -> Iterator[MetricPoint]: ...
    def metrics(
        self,
        names: Iterable[str] | None = None,
        after_step: int = 0,
        kind: MetricKind | str | None = None,
        *,
        follow: bool = False,
    ) -> list[MetricPoint] | Iterator[MetricPoint]:
        """Read the job's metrics.

        Args:
            names: only these metrics. Default: all.
            after_step: only points after this step.
            kind: only RESULT or only TIMING metrics. Default: both.
            follow: yield points as they come, until the job has ended, in the order they were stored.

        Returns:
            All points there are, result metrics first, each kind by step and name; or an iterator, if `follow`. It
            opens a broken connection again; no point is lost or comes twice.
        """
        chosen = MetricKind(kind.upper()) if kind is not None else MetricKind.UNSPECIFIED
        wanted = [names] if isinstance(names, str) else list(names or ())
        read = metrics.follow_metrics if follow else metrics.list_metrics
        points = read(self._client, self._stored_id(), wanted, after_step, chosen)
        return points if follow else list(points)

    def ledger(self) -> Ledger:
        """Read where the time of the job's workers went, by rank and phase; a few seconds old while they train."""
        return ledgers.get_ledger(self._client, self._stored_id())

    def logs(
        self,
        follow: bool = False,
        rank: int | None = None,
        tail: int | None = None,
        since: datetime | timedelta | None = None,
    ) -> Iterator[LogLine]:
        """Yield what the job's workers have printed, in order, of all attempts; see README.md for what is kept.

        Args:
            follow: go on until the job has ended. A broken connection is opened again; nothing is lost or comes twice.
            rank: only lines of this rank. Default: all.
            tail: begin with the last so many.
            since: only lines from this time on, or not older than this.
        """
        return logs.stream_logs(self._client, self._stored_id(), follow=follow, rank=rank, tail=tail, since=since)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Yield the job's checkpoints that are kept, newest first."""
        return checkpoints.list_checkpoints(self._client, self._stored_id())

    def download(self, directory: str | PathLike[str], step: int | None = None, progress: bool = False) -> Path:
        """Fetch all files of a checkpoint: model.safetensors, training.safetensors and manifest.json.

        They are written under another name, checked against their sizes and digests, and put in place when all are
        whole. An `init_from: {uri: ...}` in a spec may name the folder if the server can reach it.

        Args:
            directory: where to make the folder of the checkpoint; it is made too if need be.
            step: which checkpoint. Default: the newest.
            progress: show on standard error how far it is.

        Returns:
            The folder, such as directory/step-000000000200.

        Raises:
            NotFound: there is no such checkpoint.
            DataLoss: the bytes are not those that were written.
            OSError: the folder cannot be written; FileExistsError: it is there already.
        """
        job_id = self._stored_id()
        if not progress:
            return checkpoints.download(self._client, job_id, Path(directory), step)
        from lockstep.client.progress import download_bar

        with download_bar() as tell:
            return checkpoints.download(self._client, job_id, Path(directory), step, tell)

    def load_state_dict(self, step: int | None = None) -> dict[str, Tensor]:
        """Fetch the weights of a checkpoint, for the load_state_dict of a module. Needs torch and safetensors.

        Args:
            step: which checkpoint. Default: the newest.

        Returns:
            Tensors on the CPU by their names in the model's state_dict.

        Raises:
            MissingPackage: torch or safetensors is not installed.
            NotFound: there is no such checkpoint.
            DataLoss: the bytes are not those that were written.
        """
        return checkpoints.load_state_dict(self._client, self._stored_id(), step)

    def _watch(self, timeout_s: float | None, after: int = 0) -> Iterator[JobUpdate]:
        request = job_service_pb2.WatchJobRequest(job_id=self._stored_id(), after_sequence=after)
        stream = self._client._connection.follow(
            self._client._jobs.WatchJob,
            lambda: request,
            has_ended=lambda: self.state.has_ended,
            timeout_s=timeout_s,
        )
        for message in stream:
            self.proto = message.job
            events = [event for event in message.events if event.sequence > request.after_sequence]
            if events:
                request.after_sequence = events[-1].sequence
            yield JobUpdate(Job(self._client, message.job), tuple(map(JobEvent.from_proto, events)))

    def _wait(self, timeout_s: float | None, progress: bool) -> None:
        if not progress:
            for _ in self._watch(timeout_s):
                pass
            return
        from lockstep.client.progress import show_progress  # brings rich, which not everyone needs

        show_progress(self, self._watch(timeout_s))

    def _stored_id(self) -> str:
        if not self.job_id:
            raise LockstepError("this job was only validated, not submitted: the server does not hold it")
        return self.job_id

    def _time(self, field: str, value: Timestamp) -> datetime | None:
        return to_datetime(value) if self.proto.HasField(field) else None
