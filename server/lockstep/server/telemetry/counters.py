"""What is counted as it happens: submits, ends, waits, RPCs, commits. The collectors tell how things stand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from lockstep.contract.facts import ENGINE_VERSION
from lockstep.server.coordinator.listener import KEPT_S
from lockstep.server.jobs.job import Job, State
from lockstep.server.jobs.records import Status, StoredPoint
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT

MOST_METRICS = 20
"""Result metrics of one job that are told of."""

_RPC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 86_400)
_STARTUP_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def package_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("lockstep-train")
    except PackageNotFoundError:
        return "unknown"


@dataclass
class JobRecord:
    """What is told of a job beside what the job itself says.

    Attributes:
        metrics: the newest value of each result metric.
        checkpoint_time: when the newest checkpoint that is kept was written.
        queued_since: since when it waits in the queue, or did last, as time.monotonic() tells.
        admitted_since: since when its newest attempt has resources, likewise; None when a server before gave them.
        ended: the job as it was when it ended.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint_time: datetime | None = None
    queued_since: float | None = None
    admitted_since: float | None = None
    ended: Job | None = None


class Telemetry:
    """The registry of one server, and what is counted in it. The event loop writes, the HTTP thread reads.

    Attributes:
        registry: of everything that /metrics tells.
        jobs: how many jobs stand in each state.
        queue_depth: jobs that wait for resources.
        records: of the jobs that live or have ended not long ago, by job_id.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.queue_depth = 0
        self.jobs = dict.fromkeys(State, 0)
        self.records: dict[str, JobRecord] = {}
        self._found: dict[tuple[Any, tuple[str, ...]], Any] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._submits = Counter("lockstep_jobs_submitted", "Jobs stored by this process.", registry=registry)
        self._finished = Counter(
            "lockstep_jobs_finished",
            "Jobs that have ended, by their last state and, if they failed, the reason.",
            ["state", "reason"],
            registry=registry,
        )
        self._queue_wait = Histogram(
            "lockstep_queue_wait_seconds",
            "Time from when a job began to wait for resources until it got them.",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._startup = Histogram(
            "lockstep_startup_seconds",
            "Time from when an attempt got its resources until its first step was done.",
            buckets=_STARTUP_BUCKETS,
            registry=registry,
        )
        self._points = Counter("lockstep_points_stored", "Metric points that were stored.", registry=registry)
        self._repeated = Counter(
            "lockstep_points_repeated", "Metric points that came again and were dropped.", registry=registry
        )
        self._commits = Histogram(
            "lockstep_store_commit_seconds",
            "Time of a commit of the store, with all changes in it.",
            buckets=_COMMIT_BUCKETS,
            registry=registry,
        )
        self._commit_changes = Histogram(
            "lockstep_store_commit_changes", "Changes in one commit.", buckets=_GROUP_BUCKETS, registry=registry
        )
        self._lag = Histogram(
            "lockstep_event_loop_lag_seconds",
            "How much later than wanted the event loop has called back, in seconds.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        labels = ["grpc_service", "grpc_method"]
        self._started = Counter("grpc_server_started", "RPCs that came in.", labels, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "RPCs that have ended, by status.", [*labels, "grpc_code"], registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from an RPC's arrival to its end.",
            labels,
            buckets=_RPC_BUCKETS,
            registry=registry,
        )
        info = Gauge("lockstep_build_info", "Always 1.", ["version", "engine_version"], registry=registry)
        info.labels(package_version(), ENGINE_VERSION).set(1)

    # Jobs.

    def set_counts(self, counts: Mapping[State, int]) -> None:
        """Set how many jobs stand in each state."""
        self.jobs = {state: counts.get(state, 0) for state in State}

    def job_taken_up(self, job: Job, checkpoint_time: datetime | None = None) -> None:
        """Tell of a job that the store knows."""
        record = self.records[job.job_id] = JobRecord(checkpoint_time=checkpoint_time)
        if job.state is State.QUEUED:
            record.queued_since = time.monotonic()
        if job.state.has_ended:
            record.ended = job

    def job_submitted(self, job: Job) -> None:
        """Count a new job."""
        self._submits.inc()
        self.jobs[State.QUEUED] += 1
        self.records[job.job_id] = JobRecord(queued_since=time.monotonic())

    def job_changed(self, before: Job, after: Job, status: Status, stored_points: int) -> None:
        """Count what has happened to a job.

        Args:
            before: as it was.
            after: as it is stored now.
            status: what a report brought.
            stored_points: how many of its points are new.
        """
        record = self.records.setdefault(after.job_id, JobRecord())
        self._points.inc(stored_points)
        self._repeated.inc(len(status.points) - stored_points)
        for point in status.points:
            self._note_point(record, point)
        if status.checkpoints is not None:
            record.checkpoint_time = max((kept.create_time for kept in status.checkpoints), default=None)
        if before.state is not after.state:
            self._note_state(record, before, after)
        first_step = after.timeline.first_step
        if before.timeline.first_step is None and first_step is not None and record.admitted_since is not None:
            told_after_s = (datetime.now(UTC) - first_step).total_seconds()
            self._startup.observe(max(0.0, time.monotonic() - record.admitted_since - told_after_s))

    def _note_point(self, record: JobRecord, point: StoredPoint) -> None:
        if point.kind == METRIC_KIND_RESULT and (point.name in record.metrics or len(record.metrics) < MOST_METRICS):
            record.metrics[point.name] = point.value

    def _note_state(self, record: JobRecord, before: Job, after: Job) -> None:
        self.jobs[before.state] -= 1
        self.jobs[after.state] += 1
        now = time.monotonic()
        if after.state is State.QUEUED:
            record.queued_since = now
        elif before.state is State.QUEUED and after.state is State.STARTING:
            record.admitted_since = now
            if record.queued_since is not None:
                self._queue_wait.observe(now - record.queued_since)
        if after.state.has_ended:
            reason = after.error.reason if after.error is not None else ""
            self._finished.labels(after.state.value.lower(), reason).inc()
            record.ended = after

    def forget_old_jobs(self, now: datetime) -> None:
        """Tell no more of jobs that ended long ago."""
        for job_id, record in list(self.records.items()):
            ended = record.ended
            if ended is not None and (now - (ended.end_time or ended.create_time)).total_seconds() > KEPT_S:
                del self.records[job_id]

    def job_forgotten(self, job_id: str, state: State) -> None:
        """Count a job no more that was deleted."""
        self.records.pop(job_id, None)
        self.jobs[state] -= 1

    # The service itself.

    def rpc_started(self, service: str, method: str) -> None:
        """Count an RPC that came in."""
        self._series(self._started, service, method).inc()

    def rpc_ended(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count an RPC that has ended."""
        self._series(self._handled, service, method, code).inc()
        self._series(self._seconds, service, method).observe(seconds)

    def _series(self, metric: Any, *labels: str) -> Any:
        # Looking it up in the metric itself takes longer than counting.
        found = self._found.get((metric, labels))
        if found is None:
            found = self._found[metric, labels] = metric.labels(*labels)
        return found

    def committed(self, changes: int, seconds: float) -> None:
        """Count a commit of the store; called by its writer's thread."""
        self._commits.observe(seconds)
        self._commit_changes.observe(changes)

    def loop_lagged(self, seconds: float) -> None:
        """Count how late the event loop was."""
        self._lag.observe(max(0.0, seconds))
