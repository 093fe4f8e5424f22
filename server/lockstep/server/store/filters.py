"""Which jobs a list is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, select

from lockstep.server.jobs.job import State
from lockstep.server.store import tables


@dataclass(frozen=True)
class JobFilter:
    """Lets jobs through that meet all of it; what is empty asks for nothing.

    Attributes:
        states: in one of these states.
        labels: with all of these labels.
        job_id_prefix: whose job_id begins so.
        name: of this name.
        owner: of this principal.
    """

    states: tuple[State, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    job_id_prefix: str = ""
    name: str = ""
    owner: str = ""

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same as conditions on a row of the jobs."""
        jobs = tables.jobs.c
        found: list[ColumnElement[bool]] = []
        if self.states:
            found.append(jobs.state.in_([state.value for state in self.states]))
        for key, value in self.labels.items():
            carriers = select(tables.labels.c.job_id).where(tables.labels.c.key == key, tables.labels.c.value == value)
            found.append(jobs.job_id.in_(carriers))
        if self.job_id_prefix:
            found.append(jobs.job_id.startswith(self.job_id_prefix, autoescape=True))
        if self.name:
            found.append(jobs.name == self.name)
        if self.owner:
            found.append(jobs.owner == self.owner)
        return found


ANY_JOB = JobFilter()
