"""What has to be done for an attempt, in the order in which it is said."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.v1.job_pb2 import JobError


@dataclass(frozen=True)
class Take:
    """Find a process for a worker and have it begin; `Taken` is the next event.

    Attributes:
        number: of the worker.
        node_id: where it shall be.
        is_fresh: in a new process.
    """

    number: int
    node_id: str
    is_fresh: bool = False


@dataclass(frozen=True)
class Form:
    """Tell workers of the next generation.

    Attributes:
        generation: its number.
        numbers: of its workers, by rank.
        addresses: where they listen for each other, by rank.
        why: what to tell people when training goes on; empty for the first one.
    """

    generation: int
    numbers: tuple[int, ...]
    addresses: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Stop:
    """Tell workers to stop at a step boundary; see the contract's StopGang."""

    numbers: tuple[int, ...]
    keep: bool
    refusable: int


@dataclass(frozen=True)
class Dismiss:
    """Tell a worker to leave; the others go on, or are told too."""

    number: int


@dataclass(frozen=True)
class Kill:
    """End a worker's process; its death is an event."""

    number: int


@dataclass(frozen=True)
class Discard:
    """End a worker's process, or what is left of it, and hear no more of it."""

    number: int


@dataclass(frozen=True)
class GiveBack:
    """Give a worker's process back to the pool, as good as new, and hear no more of the worker.

    Attributes:
        number: of the worker.
        memory_bytes: what the process takes.
        has_left_log: not all that it has printed was delivered.
    """

    number: int
    memory_bytes: int
    has_left_log: bool


@dataclass(frozen=True)
class TellStarted:
    """Tell the coordinator that all workers are up."""


@dataclass(frozen=True)
class TellChanged:
    """Tell the coordinator who is in the gang now; see the contract's GangChanged."""

    revision: int
    node_ids: tuple[str, ...]
    running_workers: int
    message: str = ""
    refused_node_ids: tuple[str, ...] = ()
    refuses_stop: bool = False


@dataclass(frozen=True)
class TellStopped:
    """Tell the coordinator that nothing is left; see the contract's GangStopped. The last command of an attempt."""

    error: JobError | None
    is_too_small: bool


@dataclass(frozen=True)
class Log:
    """Write a line into the launcher's log."""

    line: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_warning: bool = False


Command = Take | Form | Stop | Dismiss | Kill | Discard | GiveBack | TellStarted | TellChanged | TellStopped | Log
