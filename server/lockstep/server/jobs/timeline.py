"""How an attempt of a job comes to its first step, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime


@dataclass(frozen=True)
class Timeline:
    """When each stage was reached; None for one that was not.

    Attributes:
        admitted: resources were granted.
        placed: all workers were up.
        data_ready: rank 0 had the data and the model.
        joined: all ranks had met.
        first_step: the first step was done.
        first_point: the first metric points had come.
    """

    admitted: datetime | None = None
    placed: datetime | None = None
    data_ready: datetime | None = None
    joined: datetime | None = None
    first_step: datetime | None = None
    first_point: datetime | None = None

    def reaching(self, **stages: datetime | None) -> Timeline:
        """Return it with these stages; one that was reached before stays."""
        new = {name: time for name, time in stages.items() if time is not None and getattr(self, name) is None}
        return replace(self, **new) if new else self

    def stages(self) -> dict[str, datetime]:
        """Return the stages that were reached, in their order."""
        return {name: time for name in _STAGES if (time := getattr(self, name)) is not None}


_STAGES = tuple(field.name for field in fields(Timeline))
NOTHING_REACHED = Timeline()
