"""Translation between what the coordinator works with and the messages of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.contract.facts import PHASES
from lockstep.server.jobs.job import Job, State
from lockstep.server.jobs.records import StoredCheckpoint, StoredEvent, StoredFile, StoredPoint
from lockstep.server.ledger.ledger import JobLedger
from lockstep.v1 import job_pb2
from lockstep.v1.checkpoint_service_pb2 import Checkpoint, CheckpointFile
from lockstep.v1.ledger_pb2 import Ledger, PhaseSeconds
from lockstep.v1.metrics_service_pb2 import MetricKind, MetricPoint

# The stubs take enums for classes; to protobuf their values are plain numbers.
_STATE_TO_PROTO = {
    state: cast("job_pb2.JobState", job_pb2.JobState.Value(f"JOB_STATE_{state.value}")) for state in State
}
_STATE_FROM_PROTO: dict[int, State] = {number: state for state, number in _STATE_TO_PROTO.items()}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def state_from_proto(number: int) -> State | None:
    """Return the state of that number; None when there is none."""
    return _STATE_FROM_PROTO.get(number)


def _timestamp(time: datetime) -> Timestamp:
    since = time - _EPOCH  # a third of the time that FromDatetime takes
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def _timeline_to_proto(job: Job) -> job_pb2.JobTimeline:
    stages = {stage: _timestamp(time) for stage, time in job.timeline.stages().items()}
    return job_pb2.JobTimeline(submitted=_timestamp(job.create_time), **stages)


def job_to_proto(job: Job) -> job_pb2.Job:
    """Write a job as users see it."""
    progress = job_pb2.JobProgress(
        step=job.progress.step, total_steps=job.progress.total_steps, epoch=job.progress.epoch
    )
    return job_pb2.Job(
        job_id=job.job_id,
        spec=job.spec,
        state=_STATE_TO_PROTO[job.state],
        state_reason=job.state_reason,
        attempt=job.attempt,
        restarts=job.restarts,
        create_time=_timestamp(job.create_time),
        start_time=None if job.start_time is None else _timestamp(job.start_time),
        end_time=None if job.end_time is None else _timestamp(job.end_time),
        progress=progress,
        result=job.result if job.state is State.SUCCEEDED else None,
        error=job.error,
        engine_version=job.engine_version,
        curve_digest=job.curve_digest,
        hardware_class=job.hardware_class,
        heals=job.heals,
        running_workers=job.running_workers,
        timeline=_timeline_to_proto(job),
        owner=job.owner,
    )


def event_to_proto(event: StoredEvent) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(
        sequence=event.sequence,
        time=_timestamp(event.time),
        state=_STATE_TO_PROTO[event.state],
        attempt=event.attempt,
        message=event.message,
    )


def point_to_proto(point: StoredPoint) -> MetricPoint:
    kind = cast("MetricKind", point.kind)
    return MetricPoint(name=point.name, step=point.step, epoch=point.epoch, value=point.value, kind=kind)


def checkpoint_to_proto(checkpoint: StoredCheckpoint) -> Checkpoint:
    return Checkpoint(
        job_id=checkpoint.job_id,
        step=checkpoint.step,
        uri=checkpoint.uri,
        create_time=_timestamp(checkpoint.create_time),
        files=map(file_to_proto, checkpoint.files),
        weights_digest=checkpoint.weights_digest,
    )


def file_to_proto(file: StoredFile) -> CheckpointFile:
    return CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)


def ledger_to_proto(ledger: JobLedger, node_names: Mapping[str, str]) -> Ledger:
    """Write a ledger as users see it."""
    written = Ledger(flops_per_step=ledger.flops_per_step)
    for rank, account in sorted(ledger.ranks.items()):
        seconds = {f"{phase}_s": value for phase, value in zip(PHASES, ledger.seconds_of(rank), strict=True)}
        written.ranks.add(
            rank=rank,
            seconds=PhaseSeconds(**seconds),
            node_id=account.node_id,
            node_name=node_names.get(account.node_id, ""),
            steps=account.steps,
            memory_bytes=account.memory_bytes,
            gpu_memory_bytes=account.gpu_memory_bytes,
            cpu_seconds=account.cpu_seconds,
        )
    straggler = ledger.straggler()
    if straggler is not None:
        written.straggler_rank, written.straggler_lag_ratio = straggler
    return written
