"""What can happen to an attempt. Workers are named by their numbers; news of one that is gone is none any more."""

from dataclasses import dataclass

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import Status


@dataclass(frozen=True)
class Taken:
    """A process was found for a worker.

    Attributes:
        number: of the worker.
        is_reused: the process was there before.
        is_warm: it has done what takes long the first time.
    """

    number: int
    is_reused: bool = False
    is_warm: bool = False


@dataclass(frozen=True)
class CameUp:
    """A worker has answered, and listens for the others at this address."""

    number: int
    address: str


@dataclass(frozen=True)
class Told:
    """A worker has something to tell."""

    number: int
    status: Status


@dataclass(frozen=True)
class Death:
    """A worker's process is gone; with its node, it may be."""

    number: int
    error: JobError
    is_with_node: bool = False


@dataclass(frozen=True)
class Died:
    """A worker is gone, and of these others it is known already; they come as events of their own, too."""

    first: Death
    others: tuple[Death, ...] = ()


@dataclass(frozen=True)
class Hung:
    """A worker gets nowhere, or says nothing."""

    number: int
    why: str


@dataclass(frozen=True)
class TimeIsUp:
    """The attempt's deadline may have passed."""


@dataclass(frozen=True)
class StopAsked:
    """The coordinator wants the gang to stop; see the contract's StopGang."""

    grace_s: float
    keep: bool
    refusable: int = 0


@dataclass(frozen=True)
class ResizeAsked:
    """The coordinator wants the gang to have other workers: one on each of these nodes."""

    revision: int
    node_ids: tuple[str, ...]


@dataclass(frozen=True)
class LauncherFailed:
    """What has to be done cannot be: the launcher has failed, or Ray has."""

    why: str


Event = Taken | CameUp | Told | Died | Hung | TimeIsUp | StopAsked | ResizeAsked | LauncherFailed
