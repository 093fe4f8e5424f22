"""An attempt of a job as a value: its workers, how far each has come, and what the attempt is about.

        Gathering ──► Training ◄──► Stopping   (back when the workers refuse, since they can keep nothing)
            │           │   ▲          │
            │           ▼   └───────── │ ──┐
            │        Finishing ◄───────│───┘
            ▼           ▼              ▼
Ended ◄── Failing, and whichever has no worker left
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import NamedTuple

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.launcher.attempt.partition import PeerLosses

# How far a worker has come.


class Bits(NamedTuple):
    """What the bits of a worker depend on.

    Attributes:
        hardware: in words.
        data: the digest of what it has read.
    """

    hardware: str
    data: str


@dataclass(frozen=True)
class Coming:
    """Its process was asked to begin and has not answered.

    Attributes:
        up_by: when it is given up.
        replace_by: when its process is killed for a new one to take its place; None for a process that is new.
        bits: those of a worker that has told them sooner than its process has answered.
    """

    up_by: float
    replace_by: float | None = None
    bits: Bits | None = None


@dataclass(frozen=True)
class Reading:
    """It is up and reads the data."""


@dataclass(frozen=True)
class Ready:
    """It has read the data, and may train with the others.

    Attributes:
        bits: what its bits depend on.
        since: the first generation that it was told of; None before that.
    """

    bits: Bits
    since: int | None = None


@dataclass(frozen=True)
class Ranked:
    """It is in the newest generation.

    Attributes:
        bits: what its bits depend on.
        rank: in that generation.
        since: the first generation that it was told of.
    """

    bits: Bits
    rank: int
    since: int


@dataclass(frozen=True)
class Finished:
    """It trained no more when this launcher took it over; its status tells why.

    Attributes:
        was_ranked: it was in the newest generation.
        bits: what its bits depend on; None if it has never read the data.
    """

    was_ranked: bool
    bits: Bits | None = None


@dataclass(frozen=True)
class Leaving:
    """It was told to go.

    Attributes:
        is_surplus: the gang shall have fewer workers or others, and those that stay go on without it; else all go.
        kill_by: when it is killed; None for the attempt's own deadline.
    """

    is_surplus: bool
    kill_by: float | None = None


Stage = Coming | Reading | Ready | Ranked | Finished | Leaving


@dataclass(frozen=True)
class Member:
    """A worker.

    Attributes:
        number: its number within the attempt, in the order of creation.
        node_id: where it is.
        stage: how far it has come.
        address: where it listens for the others; empty until it is up.
        is_reused: its process was there before.
        killed_because: its process was killed, and its death will come; why, if it hung. None while it was not.
    """

    number: int
    node_id: str
    stage: Stage
    address: str = ""
    is_reused: bool = False
    killed_because: str | None = None

    @property
    def is_leaving(self) -> bool:
        return isinstance(self.stage, Leaving)

    @property
    def is_ranked(self) -> bool:
        """Whether the others miss it when it is gone: it is in the newest generation and shall stay."""
        return isinstance(self.stage, Ranked) or (isinstance(self.stage, Finished) and self.stage.was_ranked)

    @property
    def bits(self) -> Bits | None:
        """What its bits depend on; None until it has read the data, and of one that leaves."""
        return None if isinstance(self.stage, Reading | Leaving) else self.stage.bits

    @property
    def hung_because(self) -> str:
        """Why it hung; empty if it did not."""
        return self.killed_because or ""

    @property
    def kill_by(self) -> float | None:
        """When its process is killed, unless it comes up or leaves before."""
        match self.stage:
            case Coming(replace_by=deadline) | Leaving(kill_by=deadline):
                return deadline
            case _:
                return None

    @property
    def up_by(self) -> float | None:
        """When it is given up, unless it comes up before."""
        return self.stage.up_by if isinstance(self.stage, Coming) else None


# What the attempt is about.


class Left(Enum):
    """Whether a worker that trained is done, as all are: then nobody joins any more."""

    NONE = 0
    BEFORE_THE_STOP = 1
    SINCE_THE_STOP = 2  # so what it had is kept


class Cause(IntEnum):
    """Where an error comes from; the others follow from the lowest."""

    OWN = 0  # the worker could not go on itself
    DEATH = 1  # of a process
    LOST_PEER = 2  # a worker could not reach another one


class Failure(NamedTuple):
    """What an attempt fails with."""

    error: JobError
    cause: Cause


@dataclass(frozen=True)
class Gathering:
    """The first workers come up and read the data; there is no generation yet."""


@dataclass(frozen=True)
class Training:
    """Workers train, and others may join or leave."""


@dataclass(frozen=True)
class Finishing:
    """A worker that trained is done, as all are: nobody joins any more, and nobody is missed.

    Attributes:
        deadline: when those are killed that are still there.
    """

    deadline: float


@dataclass(frozen=True)
class Stopping:
    """All were told to stop at a step boundary.

    Attributes:
        deadline: when those are killed that are still there.
        refusable: number of the order, if the workers may refuse it; else 0.
        too_small_because: what has happened, when they stop since fewer than `resources.min_workers` are left; None
            when the coordinator wants it.
        left: whether one is done.
        failures: what workers have failed with.
    """

    deadline: float
    refusable: int = 0
    too_small_because: str | None = None
    left: Left = Left.NONE
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Failing:
    """A worker could not go on, or nobody is left; the others may report before they go.

    Attributes:
        deadline: when those are killed that are still there.
        failures: what workers have failed with.
    """

    deadline: float
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Ended:
    """Nothing is left.

    Attributes:
        error: why, when it did not end as it should.
        is_too_small: it stopped in order since fewer than `resources.min_workers` were left.
    """

    error: JobError | None = None
    is_too_small: bool = False


State = Gathering | Training | Finishing | Stopping | Failing | Ended


class Plan(NamedTuple):
    """What of the order to start decides anything.

    Attributes:
        min_workers: with fewer it does not go on.
        data_kind: kind of its data, as the spec names it.
    """

    min_workers: int = 1
    data_kind: str = ""

    @classmethod
    def of(cls, order: StartGang) -> "Plan":
        return cls(max(1, order.spec.resources.min_workers), order.spec.data.WhichOneof("kind") or "")


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job.

    Attributes:
        plan: what was ordered.
        state: what it is about.
        members: the workers that are there, leaving ones among them, in the order of creation.
        generation: number of the newest one; 0 for none.
        revision: of the newest order to resize.
        created: how many workers there ever were.
        peer_losses: whether the workers have lost each other.
    """

    plan: Plan
    state: State = Gathering()
    members: tuple[Member, ...] = ()
    generation: int = 0
    revision: int = 0
    created: int = 0
    peer_losses: PeerLosses = field(default_factory=PeerLosses)

    @property
    def has_ended(self) -> bool:
        return isinstance(self.state, Ended)

    @property
    def staying(self) -> list[Member]:
        """Workers that were not told to go."""
        return [member for member in self.members if not member.is_leaving]

    @property
    def ready(self) -> list[Member]:
        """Those that can be in the next generation."""
        return [member for member in self.members if isinstance(member.stage, Ready | Ranked)]

    @property
    def running_workers(self) -> int:
        """How many are in the newest generation."""
        return sum(member.is_ranked for member in self.members)

    @property
    def deadline(self) -> float | None:
        """When `TimeIsUp` is due if nothing else happens; None for never.

        It follows from the rest, and so is no command: there is no alarm that could be forgotten or be of before.
        """
        if self.has_ended:
            return None
        times = [self.state.deadline] if isinstance(self.state, Finishing | Stopping | Failing) else []
        waits = [self.peer_losses.deadline]
        for member in self.members:
            waits += [member.up_by, member.kill_by]
        return min([*times, *(wait for wait in waits if wait is not None)], default=None)

    def member(self, number: int) -> Member | None:
        """The worker of this number; None when it is gone."""
        return next((member for member in self.members if member.number == number), None)

    def with_members(self, members: Iterable[Member]) -> "Attempt":
        """The same with these instead of those of their numbers."""
        changed = {member.number: member for member in members}
        return replace(self, members=tuple(changed.get(member.number, member) for member in self.members))
