"""A job as its user holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Never, Self, TypeVar, overload

from lockstep.client import checkpoints, logs, metrics, models
from lockstep.client import ledger as ledgers
from lockstep.client._connection import UNARY_TIMEOUT_S
from lockstep.client._job_facts import JobFacts
from lockstep.client.errors import DeadlineExceeded, InvalidSpec, JobCancelled, JobFailed, LockstepError, WaitTimeout
from lockstep.client.ledger import Ledger
from lockstep.client.models import TrainedModel
from lockstep.client.types import Checkpoint, JobEvent, JobState, JobUpdate, LogLine, MetricKind, MetricPoint
from lockstep.v1 import job_pb2, job_service_pb2

if TYPE_CHECKING:
    from torch import Tensor

    from lockstep.client.client import Client

T = TypeVar("T")


class Job(JobFacts):
    """A job as the server last told it; `refresh`, `watch`, `wait`, `cancel`, `pause`, `resume`, `scale` ask again.

    Raises, from every method that calls the server: LockstepError.
    """

    def __init__(self, client: Client, proto: job_pb2.Job) -> None:
        super().__init__(proto)
        self._client = client

    def __repr__(self) -> str:
        return f"<Job {self.job_id or '(not stored)'} {self.name} {self.state}>"

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

    def wait(self, timeout_s: float | None = None, progress: bool = False, **misnamed: Never) -> Self:
        """Wait until the job has succeeded. A paused job has not ended: this goes on waiting until it is resumed.

        Args:
            timeout_s: seconds to wait; None waits for ever.
            progress: show epoch, workers, loss, accuracy and samples per second on standard error, and the final
                metrics when it has succeeded.
            misnamed: refused, since names such as `timeout` are easily taken for `timeout_s`.

        Raises:
            JobFailed: it failed.
            JobCancelled: it was cancelled.
            WaitTimeout: it has not ended in time. It goes on.
        """
        for name in misnamed:
            raise TypeError(f"wait() has no argument {name!r}; it takes timeout_s, in seconds, and progress")
        if progress or not self.state.has_ended:
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
            opens a broken connection again; no point is lost or comes twice. With its first point and at its end the
            job itself is read again.

        Raises:
            InvalidRequest: the job has no metric of a name, and will have none; the message lists those that it has.
                With `follow` that is found at the end.
        """
        chosen = MetricKind(kind.upper()) if kind is not None else MetricKind.UNSPECIFIED
        wanted = [names] if isinstance(names, str) else list(names or ())
        if follow:
            return chain.from_iterable(self._follow_metrics(wanted, after_step, chosen))
        found = list(metrics.list_metrics(self._client, self._stored_id(), wanted, after_step, chosen))
        self._check_names(wanted, found)
        return found

    def _follow_metrics(
        self, wanted: Sequence[str], after_step: int = 0, kind: MetricKind = MetricKind.UNSPECIFIED
    ) -> Iterator[list[MetricPoint]]:
        """Return an iterator of what `metrics(follow=True)` yields, with those points together that came together."""
        job_id = self._stored_id()  # now, not when the first point is asked for
        return self._named(
            self._refreshed_by(metrics.follow_metrics(self._client, job_id, wanted, after_step, kind)), wanted
        )

    def _named(self, batches: Iterator[list[MetricPoint]], wanted: Sequence[str]) -> Iterator[list[MetricPoint]]:
        """Yield the same; at its end say so if there is no metric of a name that is wanted."""
        found: dict[str, MetricPoint] = {}
        for batch in batches:
            found |= {point.name: point for point in batch}
            yield batch
        self._check_names(wanted, found.values())

    def _check_names(self, wanted: Iterable[str], found: Iterable[MetricPoint]) -> None:
        if missing := set(wanted) - {point.name for point in found}:
            metrics.check_names(self._client, self.job_id, sorted(missing), has_ended=self.state.has_ended)

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

        A log may be long: it is an iterator in any case.

        Args:
            follow: go on until the job has ended. A broken connection is opened again; nothing is lost or comes twice.
                With the first line and at the end the job itself is read again.
            rank: only lines of this rank. Default: all.
            tail: begin with the last so many.
            since: only lines from this time on, or not older than this.
        """
        lines = logs.stream_logs(self._client, self._stored_id(), follow=follow, rank=rank, tail=tail, since=since)
        return self._refreshed_by(lines) if follow else lines

    def checkpoints(self) -> list[Checkpoint]:
        """Read which checkpoints of the job are kept, newest first."""
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

    def load_model(self, step: int | None = None) -> TrainedModel:
        """Fetch and build the trained model, in evaluation mode, with what prepares raw inputs for it.

        Needs torch and the workers' part of Lockstep. `job.load_model().predict(images)` takes images as the data set
        has them.

        Args:
            step: of which checkpoint. Default: the newest.

        Raises:
            MissingPackage: torch or the workers' part is not installed.
            NotFound: there is no such checkpoint.
            DataLoss: the bytes are not those that were written.
        """
        return models.load_model(self._client, self._stored_id(), step)

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

    def _refreshed_by(self, followed: Iterator[T]) -> Iterator[T]:
        """Yield the same, and read the job with the first of it and at its end: its state has changed meanwhile."""
        is_first = True
        for item in followed:
            if is_first:
                self.refresh()
                is_first = False
            yield item
        self.refresh()

    def _wait(self, timeout_s: float | None, progress: bool) -> None:
        if not progress:
            for _ in self._watch(timeout_s):
                pass
            return
        from lockstep.client.progress import show_progress  # brings rich, which not everyone needs

        show_progress(self, iter(()) if self.state.has_ended else self._watch(timeout_s))

    def _stored_id(self) -> str:
        if not self.job_id:
            raise LockstepError("this job was only validated, not submitted: the server does not hold it")
        return self.job_id
