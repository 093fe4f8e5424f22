"""What the launcher and its actors say to each other, over calls of Ray.

A launcher takes over the actors of an older one: what is added here has a default.
"""

from typing import NamedTuple

from lockstep.v1.internal_service_pb2 import StartGang

CONTROL_CALLS = 16
"""Calls that an actor answers at once."""
POLL_S = 10.0
"""How long a call waits for a status that is new."""
PLACEMENT_TIMEOUT_S = 60.0
"""How long workers may take to come up before they are given up. So no account can begin with more than that, whatever
the clock of another machine tells."""
ANSWER_TIMEOUT_S = 5.0
"""How long a process that is there may take to answer whoever is new to it; a hung one says nothing."""
WARM_UP_S = 60.0
"""How long a process may take to get warm, and so whoever waits for that."""
HANG_FIRST_FACTOR = 20
"""How many hang timeouts may pass while nothing is known yet: of reading the data, of the first step, of validation."""
HANG_MEDIAN_FACTOR = 10
"""How many times the median of what was seen a shard may take, where that is more than the hang timeout."""


class Presence(NamedTuple):
    """A worker that has taken an assignment: where it listens for the others, its process, and its GPUs."""

    address: str
    pid: int
    gpu_ids: tuple[str, ...] = ()


class Rest(NamedTuple):
    """How an idle worker is: its process, the memory that it and its data take, and the GPUs that it holds."""

    pid: int
    memory_bytes: int
    data_bytes: int
    gpu_ids: tuple[str, ...] = ()


class Description(NamedTuple):
    """What a worker tells a launcher that takes it over.

    Attributes:
        version: of its code.
        cpus: that it holds.
        gpus: that it holds.
        owner: of the jobs that it has worked for; None when it has for nobody.
        order_bytes: the serialized StartGang of its assignment; empty when it is idle.
        number: its number within the attempt.
        node_id: Ray's id of its node.
        generation: the newest generation that it was told of, 0 for none.
        rank: its rank in that.
        address: where it listens for the others.
        members: number of workers of that generation.
        since: the first generation that it was told of, 0 for none.
        hardware: what the bits of this worker depend on, in words; empty until it has read the data.
        pid: of its process.
        gpu_ids: the GPUs that it holds, as Ray names them: numbers on its node, or UUIDs.
        data: the digest of its data; empty until it has read that.
        has_ended: it trains no more.
        is_dismissed: it was told to leave; the others go on.
    """

    version: str
    cpus: float
    gpus: float
    owner: str | None
    node_id: str
    pid: int
    order_bytes: bytes = b""
    number: int = 0
    generation: int = 0
    rank: int = 0
    address: str = ""
    members: int = 0
    since: int = 0
    hardware: str = ""
    gpu_ids: tuple[str, ...] = ()
    data: str = ""
    has_ended: bool = False
    is_dismissed: bool = False


class Status(NamedTuple):
    """What has happened to a worker.

    Attributes:
        is_prepared: it has read the data and waits for its first group, or has trained since.
        lost_generation: the newest generation in which it lost a peer; 0 for none.
        has_ended: it trains no more.
        error_bytes: the serialized JobError why, unless that was in order.
        hardware: what the bits of this worker depend on, in words; empty until it is prepared.
        went_on_in: the newest generation in which it has finished a step; 0 for none.
        is_reusable: it has ended, and its process is as good as a new one.
        memory_bytes: memory of its process then.
        has_left_log: not all that it has printed was delivered in time.
        data: the digest of its data; empty until it is prepared.
        was_dismissed: it has ended since it was told to leave, and not since all do.
        refused_stop: number of the last order to stop that this rank has refused for all; 0 for none.
        refused_because: why.
        has_finished: its training has ended in order, with the result or as it was told to stop: it meets nobody any
            more, though it may take a while to leave.
        has_lost_peer: its error is that it could not reach another worker, so what became of that one is the cause.
    """

    is_prepared: bool = False
    lost_generation: int = 0
    has_ended: bool = False
    error_bytes: bytes = b""
    hardware: str = ""
    went_on_in: int = 0
    is_reusable: bool = False
    memory_bytes: int = 0
    has_left_log: bool = False
    data: str = ""
    was_dismissed: bool = False
    refused_stop: int = 0
    refused_because: str = ""
    has_finished: bool = False
    has_lost_peer: bool = False

    @property
    def is_done(self) -> bool:
        """Whether it has done all that its attempt asked of it, and was not let go before that."""
        ended_in_order = self.has_ended and not self.error_bytes and not self.was_dismissed
        return self.has_finished or ended_in_order


class Unfit(Exception):
    """A worker was given an assignment that it must not take."""


def name_of(order: StartGang, number: int) -> str:
    """The name of an assignment: no worker ever has another of this name."""
    return f"{order.job_id}/{order.attempt}/{number}"
