"""Translation between rows and what the coordinator works with."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row

from lockstep.server.jobs.job import Job, Progress, State
from lockstep.server.jobs.records import StoredCheckpoint, StoredEvent, StoredFile, StoredPoint
from lockstep.server.jobs.timeline import Timeline
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(time: datetime) -> int:
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_microseconds(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


def changing_columns(job: Job) -> dict[str, Any]:
    """Return the columns of a job that change over its life."""
    return {
        "state": job.state.value,
        "state_reason": job.state_reason,
        "attempt": job.attempt,
        "restarts": job.restarts,
        "placement_failures": job.placement_failures,
        "heals": job.heals,
        "start_time": None if job.start_time is None else to_microseconds(job.start_time),
        "end_time": None if job.end_time is None else to_microseconds(job.end_time),
        "step": job.progress.step,
        "total_steps": job.progress.total_steps,
        "epoch": job.progress.epoch,
        "result": None if job.result is None else job.result.SerializeToString(deterministic=True),
        "error": None if job.error is None else job.error.SerializeToString(deterministic=True),
        "hardware_class": job.hardware_class,
        "event_count": job.event_count,
        "report_generation": job.generation,
        "report_sequence": job.sequence,
        "timeline": {stage: to_microseconds(time) for stage, time in job.timeline.stages().items()},
    }


def fixed_columns(job: Job) -> dict[str, Any]:
    """Return the columns of a job that never change, and the spec, which rarely does."""
    return {
        "job_id": job.job_id,
        "name": job.spec.name,
        "create_time": to_microseconds(job.create_time),
        "spec": job.spec.SerializeToString(deterministic=True),
        "engine_version": job.engine_version,
        "curve_digest": job.curve_digest,
        "init_from_uri": job.init_from_uri,
        "owner": job.owner,
    }


def job_of(row: Row[Any]) -> Job:
    """Read a row of the table of jobs with the step of the newest checkpoint beside it."""
    return Job(
        job_id=row.job_id,
        number=row.number,
        spec=JobSpec.FromString(row.spec),
        state=State(row.state),
        state_reason=row.state_reason,
        create_time=from_microseconds(row.create_time),
        engine_version=row.engine_version,
        curve_digest=row.curve_digest,
        attempt=row.attempt,
        restarts=row.restarts,
        placement_failures=row.placement_failures,
        heals=row.heals,
        start_time=None if row.start_time is None else from_microseconds(row.start_time),
        end_time=None if row.end_time is None else from_microseconds(row.end_time),
        progress=Progress(row.step, row.total_steps, row.epoch),
        result=None if row.result is None else JobResult.FromString(row.result),
        error=None if row.error is None else JobError.FromString(row.error),
        hardware_class=row.hardware_class,
        event_count=row.event_count,
        generation=row.report_generation,
        sequence=row.report_sequence,
        newest_checkpoint=row.newest_checkpoint,
        init_from_uri=row.init_from_uri,
        owner=row.owner,
        timeline=Timeline(**{stage: from_microseconds(time) for stage, time in (row.timeline or {}).items()}),
    )


def event_of(row: Row[Any]) -> StoredEvent:
    return StoredEvent(row.sequence, from_microseconds(row.time), State(row.state), row.attempt, row.message)


def point_of(row: Row[Any]) -> StoredPoint:
    return StoredPoint(row.name, row.step, row.epoch, row.value, row.kind, row.seq)


def checkpoint_columns(checkpoint: StoredCheckpoint) -> dict[str, Any]:
    return {
        "job_id": checkpoint.job_id,
        "step": checkpoint.step,
        "uri": checkpoint.uri,
        "create_time": to_microseconds(checkpoint.create_time),
        "weights_digest": checkpoint.weights_digest,
        "files": [asdict(file) for file in checkpoint.files],
    }


def checkpoint_of(row: Row[Any]) -> StoredCheckpoint:
    files = tuple(StoredFile(**file) for file in row.files)
    return StoredCheckpoint(
        row.job_id, row.step, row.uri, from_microseconds(row.create_time), row.weights_digest, files
    )
