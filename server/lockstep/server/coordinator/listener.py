"""Whoever wants to know what happens to jobs, such as telemetry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

from lockstep.server.jobs.job import Job, State
from lockstep.server.jobs.records import Status

KEPT_S = 900.0
"""How long a job that has ended is told of."""


class JobListener(Protocol):
    """Told of everything that happens to jobs, on the event loop.

    Attributes:
        queue_depth: how many jobs wait; set by the coordinator.
    """

    queue_depth: int

    @property
    def jobs(self) -> Mapping[State, int]:
        """How many jobs stand in each state."""

    @property
    def records(self) -> Collection[str]:
        """The jobs that are told of, by id."""

    def set_counts(self, counts: Mapping[State, int]) -> None:
        """Set how many jobs stand in each state."""

    def job_taken_up(self, job: Job, checkpoint_time: datetime | None = None) -> None:
        """Hear of a job that the store knows."""

    def job_submitted(self, job: Job) -> None:
        """Hear of a new job."""

    def job_changed(self, before: Job, after: Job, status: Status, stored_points: int) -> None:
        """Hear what has happened to a job; `status` is what a report brought, `stored_points` of its points are new."""

    def forget_old_jobs(self, now: datetime) -> None:
        """Forget jobs that ended long ago, see KEPT_S."""

    def job_forgotten(self, job_id: str, state: State) -> None:
        """Hear of a job that was deleted."""
