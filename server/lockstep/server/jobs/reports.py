"""A report of rank 0, checked and translated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from lockstep.contract.bounds import LONGEST_LINE_BYTES, MOST_NOTES
from lockstep.contract.facts import PHASES, STEP_BOUNDS_S
from lockstep.contract.spec.values import is_path, show
from lockstep.server.errors import InvalidRequest
from lockstep.server.jobs.job import Progress, Reported
from lockstep.server.jobs.records import Status, StoredCheckpoint, StoredFile, StoredPoint
from lockstep.server.jobs.timeline import Timeline
from lockstep.v1.checkpoint_service_pb2 import Checkpoint, CheckpointFile
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest, ReportLogsRequest, ReportProgressRequest
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_UNSPECIFIED, MetricKind, MetricPoint

_MAX_NAME = 128
_MAX_NOTE = 2_000
_MAX_RANKS = 100_000
_MAX_FILES = 10_000
_MAX_CHECKPOINTS = 10_000
_ROUNDED_S = 1e-3
_OLDEST_S = 100 * 365 * 86_400
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Report:
    """What rank 0 said.

    Attributes:
        token: what came with it to prove that it is of this attempt.
        event: what the lifecycle has to know of it.
        status: what else is stored.
    """

    job_id: str
    attempt: int
    token: str
    event: Reported
    status: Status


def read_report(request: ReportProgressRequest, token: bytes) -> Report:
    """Check and translate a report.

    Raises:
        InvalidRequest: it is not what a worker of ours sends; nothing of it is taken.
    """
    for field, value in (("job_id", request.job_id), ("attempt", request.attempt), ("sequence", request.sequence)):
        if not value or (isinstance(value, int) and value < 0):
            raise InvalidRequest.of(field, f"is {value!r}; a report must say it")
    for field, value in (("generation", request.generation), ("heals", request.heals)):
        if value < 0:
            raise InvalidRequest.of(field, f"is {value}; allowed: 0 or greater")
    progress = request.progress
    if progress.step < 0 or progress.total_steps < 0 or not math.isfinite(progress.epoch):
        raise InvalidRequest.of("progress", "has a negative step or an epoch that is no number")
    kept = request.kept_checkpoints.checkpoints
    if len(kept) > _MAX_CHECKPOINTS:
        raise InvalidRequest.of("kept_checkpoints.checkpoints", f"has more than {_MAX_CHECKPOINTS:,} items")
    checkpoints = None
    if request.HasField("kept_checkpoints"):
        checkpoints = tuple(_checkpoint(number, request.job_id, checkpoint) for number, checkpoint in enumerate(kept))
    event = Reported(
        Progress(progress.step, progress.total_steps, progress.epoch),
        request.hardware_class,
        request.result if request.HasField("result") else None,
        generation=request.generation,
        sequence=request.sequence,
        heals=request.heals,
        notes=_notes(request.notes),
        checkpoint_steps=None if checkpoints is None else tuple(checkpoint.step for checkpoint in checkpoints),
        reached=_reached(request),
    )
    points = tuple(_point(number, point) for number, point in enumerate(request.points))
    status = Status(points, checkpoints)
    return Report(request.job_id, request.attempt, token.decode("utf-8", "replace"), event, status)


def _reached(request: ReportProgressRequest) -> Timeline:
    now = datetime.now(UTC)
    ages = {name: getattr(request.startup, name) for name in ("data_ready_s", "joined_s", "first_step_s")}
    told = {name: age for name, age in ages.items() if request.startup.HasField(name)}
    for name, age in told.items():
        if not 0 <= age <= _OLDEST_S:
            raise InvalidRequest.of(f"startup.{name}", f"is {age}; allowed: 0 to {_OLDEST_S:,}")
    times = {name.removesuffix("_s"): now - timedelta(seconds=age) for name, age in told.items()}
    return Timeline(first_point=now if request.points else None, **times)


def check_log_report(request: ReportLogsRequest) -> None:
    """Check what a worker says that it has printed.

    Raises:
        InvalidRequest: it is not what a worker of ours sends; nothing of it is taken.
    """
    if request.number < 0:
        raise InvalidRequest.of("number", f"is {request.number}; allowed: 0 or greater")
    if len(request.ends) != len(request.lines):
        raise InvalidRequest.of("ends", f"has {len(request.ends):,} items for {len(request.lines):,} lines")
    if any(later <= earlier for earlier, later in pairwise(request.ends)) or min(request.ends, default=1) < 1:
        raise InvalidRequest.of("ends", "does not grow from one line to the next")
    longest = max((len(line.text) for line in request.lines), default=0)
    if longest > LONGEST_LINE_BYTES:
        raise InvalidRequest.of(
            "lines", f"holds one of {longest:,} characters; allowed: at most {LONGEST_LINE_BYTES:,}"
        )


def check_ledger_report(request: ReportLedgerRequest) -> None:
    """Check what a worker says of its time.

    Raises:
        InvalidRequest: it is not what a worker of ours sends; nothing of it is taken.
    """
    for field, value in (("job_id", request.job_id), ("attempt", request.attempt), ("sequence", request.sequence)):
        if not value or (isinstance(value, int) and value < 0):
            raise InvalidRequest.of(field, f"is {value!r}; a report must say it")
    whole = ("number", "rank", "steps", "examples", "memory_bytes", "gpu_memory_bytes")
    seconds = [
        (f"{part}.{phase}_s", getattr(getattr(request, part), f"{phase}_s"))
        for part in ("seconds", "under_way")
        for phase in PHASES
    ]
    others = [(name, getattr(request, name)) for name in ("step_duration_sum_s", "flops_per_step", "cpu_seconds")]
    for field, value in [(name, getattr(request, name)) for name in whole] + seconds + others:
        if not 0 <= value < math.inf:
            raise InvalidRequest.of(field, f"is {value}; allowed: 0 or greater")
    if request.rank >= _MAX_RANKS:
        raise InvalidRequest.of("rank", f"is {request.rank}; allowed: less than {_MAX_RANKS:,}")
    if len(request.step_duration_counts) != len(STEP_BOUNDS_S) + 1 or min(request.step_duration_counts) < 0:
        raise InvalidRequest.of("step_duration_counts", f"is not {len(STEP_BOUNDS_S) + 1} counts")
    if sum(request.step_duration_counts) != request.steps:
        counted = sum(request.step_duration_counts)
        raise InvalidRequest.of("step_duration_counts", f"counts {counted:,} steps; steps says {request.steps:,}")
    for phase in PHASES:
        part, whole_s = getattr(request.under_way, f"{phase}_s"), getattr(request.seconds, f"{phase}_s")
        if part > whole_s + _ROUNDED_S:
            raise InvalidRequest.of(
                f"under_way.{phase}_s", f"is {part}, a part of seconds.{phase}_s, which is {whole_s}"
            )
    if len(request.node_id) > _MAX_NAME:
        raise InvalidRequest.of("node_id", f"has {len(request.node_id)} characters; allowed: up to {_MAX_NAME}")


def _notes(notes: Iterable[str]) -> tuple[str, ...]:
    # Shortened and not refused: a job must not fail of too many words.
    given = [text for text in notes if text]
    kept = [text if len(text) <= _MAX_NOTE else f"{text[: _MAX_NOTE - 3]}..." for text in given[:MOST_NOTES]]
    return tuple(kept)


def _point(number: int, point: MetricPoint) -> StoredPoint:
    field = f"points[{number}]"
    if not 0 < len(point.name) <= _MAX_NAME:
        raise InvalidRequest.of(f"{field}.name", f"has {len(point.name)} characters; allowed: 1 to {_MAX_NAME}")
    if point.step < 1:
        raise InvalidRequest.of(f"{field}.step", f"is {point.step}; steps count from 1")
    if point.kind == METRIC_KIND_UNSPECIFIED or point.kind not in MetricKind.values():
        raise InvalidRequest.of(f"{field}.kind", f"is {point.kind}; it must say whether this is a result or a timing")
    return StoredPoint(point.name, point.step, point.epoch, point.value, point.kind)


def _checkpoint(number: int, job_id: str, checkpoint: Checkpoint) -> StoredCheckpoint:
    field = f"kept_checkpoints.checkpoints[{number}]"
    if checkpoint.step < 0:
        raise InvalidRequest.of(f"{field}.step", f"is {checkpoint.step}; allowed: 0 or greater")
    if not checkpoint.uri or not is_path(checkpoint.uri):
        raise InvalidRequest.of(f"{field}.uri", f"is {show(checkpoint.uri)}; it must say where the checkpoint lies")
    if checkpoint.weights_digest and not _is_sha256(checkpoint.weights_digest):
        raise InvalidRequest.of(f"{field}.weights_digest", "is no SHA-256 in hex")
    if len(checkpoint.files) > _MAX_FILES:
        raise InvalidRequest.of(f"{field}.files", f"has more than {_MAX_FILES:,} items")
    files = tuple(_file(f"{field}.files[{i}]", file) for i, file in enumerate(checkpoint.files))
    return StoredCheckpoint(
        job_id, checkpoint.step, checkpoint.uri, _time_of(field, checkpoint), checkpoint.weights_digest, files
    )


def _time_of(field: str, checkpoint: Checkpoint) -> datetime:
    if not checkpoint.HasField("create_time"):
        return datetime.now(UTC)
    try:
        return checkpoint.create_time.ToDatetime(UTC)
    except ValueError as error:
        raise InvalidRequest.of(f"{field}.create_time", "is no time") from error


def _file(field: str, file: CheckpointFile) -> StoredFile:
    if not 0 < len(file.name) <= _MAX_NAME or "/" in file.name or file.name in (".", "..") or not is_path(file.name):
        raise InvalidRequest.of(f"{field}.name", f"is {show(file.name)}; it must be the name of a file in the folder")
    if file.size_bytes < 0:
        raise InvalidRequest.of(f"{field}.size_bytes", f"is {file.size_bytes}; allowed: 0 or greater")
    if not _is_sha256(file.sha256):
        raise InvalidRequest.of(f"{field}.sha256", "is no SHA-256 in hex")
    return StoredFile(file.name, file.size_bytes, file.sha256)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and _HEX.issuperset(text)
