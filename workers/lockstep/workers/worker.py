"""The actor: one worker of a gang, a thin shell around the engine.

Training runs in a thread. All methods return soon, or after POLL_S at the latest, so that a launcher that has died
leaves nothing waiting here.
"""

import threading
from typing import Any, NamedTuple

import ray
import structlog

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.engine import ENGINE_VERSION, Origin, Stopped
from lockstep.workers.engine.checkpoint import Checkpoints
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.membership import Dismissed, Membership
from lockstep.workers.engine.transport import Endpoint
from lockstep.workers.failures import job_error
from lockstep.workers.pulse import Pulse
from lockstep.workers.report import Reporter
from lockstep.workers.training import device_of, train

CONTROL_CALLS = 16
"""Calls that an actor answers at once."""
POLL_S = 10.0
"""How long a call waits for news."""
LAST_WORDS_S = 5.0
"""How long a worker that failed goes on trying to report what it has seen before."""

log = structlog.get_logger()


class Description(NamedTuple):
    """What a worker tells a launcher that takes it over.

    Attributes:
        order_bytes: the serialized StartGang that it carries out; empty when it has none yet.
        node_id: Ray's id of its node.
        generation: the newest generation that it was told of, 0 for none.
        rank: its rank in that.
        address: where it listens for the others.
        members: number of workers of that generation.
        since: the first generation that it was told of, 0 for none.
        hardware: what the bits of this worker depend on, in words; empty until it has read the data.
    """

    order_bytes: bytes
    node_id: str
    generation: int
    rank: int
    address: str
    members: int
    since: int
    hardware: str


class News(NamedTuple):
    """What has happened to a worker.

    Attributes:
        is_prepared: it has read the data and waits for its first group, or has trained since.
        lost_generation: the newest generation in which it lost a peer; 0 for none.
        has_ended: it trains no more.
        error_bytes: the serialized JobError why, unless that was in order.
        hardware: what the bits of this worker depend on, in words; empty until it is prepared.
        went_on_in: the newest generation in which it has finished a step; 0 for none.
    """

    is_prepared: bool
    lost_generation: int
    has_ended: bool
    error_bytes: bytes
    hardware: str = ""
    went_on_in: int = 0


class Worker:
    """One worker. It trains once and is then removed."""

    def __init__(self) -> None:
        self._node_id: str = ray.get_runtime_context().get_node_id()
        self._endpoint = Endpoint(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._order = StartGang()
        self._epoch = 0
        self._membership: Membership | None = None
        self._reporter: Reporter | None = None
        self._pulse: Pulse | None = None
        self._changed = threading.Condition()
        self._forming = threading.Lock()
        self._news = News(is_prepared=False, lost_generation=0, has_ended=False, error_bytes=b"")

    def begin(self, order_bytes: bytes) -> str:
        """Read the data and wait for a group, in the background; returns where this worker listens for the others.

        Args:
            order_bytes: the serialized StartGang.
        """
        if self._membership is None:
            self._order = StartGang.FromString(order_bytes)
            self._epoch = self._order.epoch
            self._pulse = Pulse(self._order.spec.recovery.hang_timeout_s)
            self._reporter = Reporter(self._order, self._pulse, self._went_on)
            self._membership = Membership(
                self._endpoint, self._order.attempt_token.encode(), device_of(self._order.spec), self._lost
            )
            threading.Thread(target=self._train, name="train", daemon=True).start()
        return self._endpoint.address

    def form(self, epoch: int, generation: int, rank: int, addresses: list[str], why: str) -> None:
        """Belong to a new generation.

        Args:
            epoch: the coordinator's epoch; orders of a lower one than seen before are ignored.
            generation: its number.
            rank: this worker's rank in it.
            addresses: the endpoints of all ranks.
            why: what to tell people when training goes on, such as "healed".
        """
        with self._forming:  # two calls may come at once, each in a thread
            if not self._is_obeyed(epoch) or self._membership is None or self._reporter is None:
                return
            if generation > self._membership.current.number:
                self._reporter.pauses(why)
                self._reporter.lead(generation, rank == 0)
                self._membership.form(generation, rank, addresses)

    def dismiss(self, epoch: int) -> None:
        """Leave; the others go on."""
        if self._is_obeyed(epoch) and self._membership is not None:
            self._membership.dismiss()

    def stop(self, epoch: int, keep: bool) -> None:
        """Stop training at the next step boundary, all ranks together, with a checkpoint or without."""
        if self._is_obeyed(epoch) and self._reporter is not None:
            self._reporter.stop(keep)

    def describe(self, epoch: int, coordinator_address: str) -> Description:
        """Tell a launcher of a newer epoch who this is, and report to its coordinator from now on."""
        if not self._is_obeyed(epoch) or self._membership is None or self._reporter is None:
            return Description(b"", self._node_id, 0, 0, self._endpoint.address, 0, 0, "")
        self._reporter.redirect(coordinator_address)
        current = self._membership.current
        return Description(
            self._order.SerializeToString(),
            self._node_id,
            current.number,
            current.rank,
            self._endpoint.address,
            len(current.addresses),
            self._membership.first_number,
            self._news.hardware,
        )

    def news(self, known: News | None) -> News:
        """What has happened, as soon as it differs from what is known, or after a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._news != known, POLL_S)
            return self._news

    def why_hung(self) -> str | None:
        """Why this worker counts as hung; None when it does not. Answering at all is a sign of life."""
        return self._pulse.why_hung() if self._pulse is not None else None

    def _is_obeyed(self, epoch: int) -> bool:
        if epoch < self._epoch:
            log.warning("ignored an order of an earlier coordinator", job_id=self._order.job_id)
            return False
        self._epoch = epoch
        return True

    def _tell(self, **changes: Any) -> None:
        with self._changed:
            self._news = self._news._replace(**changes)
            self._changed.notify_all()

    def _lost(self, generation: int) -> None:
        """A group was lost; with 0, this worker is ready for its first one."""
        hardware = f"{hardware_class(device_of(self._order.spec))}, engine {ENGINE_VERSION}"
        lost_generation = max(generation, self._news.lost_generation)
        self._tell(is_prepared=True, lost_generation=lost_generation, hardware=hardware)

    def _went_on(self) -> None:
        """A step is done, the first one since the group was lost."""
        assert self._membership is not None
        self._tell(went_on_in=self._membership.current.number)

    def _train(self) -> None:
        """Run one worker of an attempt to its end."""
        assert self._reporter is not None
        assert self._membership is not None
        order, error_bytes = self._order, b""
        recovery = order.spec.recovery
        try:
            origin = Origin(checkpoints_of(order), recovery.checkpoint_every_steps, order.init_from_uri)
            try:
                train(order.spec, None, self._reporter, regroup=self._membership.next_group, origin=origin)
            except Stopped:
                self._reporter.flush()
        except Dismissed:
            pass
        except BaseException as error:
            error_bytes = job_error(error, self._membership.current.rank).SerializeToString()
        finally:
            self._reporter.close(LAST_WORDS_S)
            self._tell(has_ended=True, error_bytes=error_bytes)


def checkpoints_of(order: StartGang) -> Checkpoints:
    """The checkpoints of a job, which say on what their bits depend."""
    facts = {
        "job_id": order.job_id,
        "engine_version": ENGINE_VERSION,
        "hardware_class": hardware_class(device_of(order.spec)),
    }
    return Checkpoints(order.checkpoint_uri, order.spec.recovery.keep_checkpoints, facts)
