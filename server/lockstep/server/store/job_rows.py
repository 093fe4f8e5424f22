"""Translation between a job with its events and their rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from lockstep.server.jobs.job import Job, Progress, State
from lockstep.server.jobs.records import StoredEvent
from lockstep.server.jobs.timeline import Timeline
from lockstep.server.store.dialect import to_json
from lockstep.server.store.tables import from_microseconds, to_microseconds
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec


def changing_columns(job: Job) -> dict[str, Any]:
    """Return the columns of a job that change over its life, as a `Statement` writes them."""
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
        "timeline": to_json({stage: to_microseconds(time) for stage, time in job.timeline.stages().items()}),
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
    """Read a row of the table of events."""
    return StoredEvent(row.sequence, from_microseconds(row.time), State(row.state), row.attempt, row.message)
