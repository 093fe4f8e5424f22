"""A worker's part in one attempt of a job, from the order to its end."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import json_format

from lockstep.contract.facts import ENGINE_VERSION, Phase
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.actor.failures import is_of_the_user, job_error
from lockstep.workers.actor.ledger_reporter import LedgerReports
from lockstep.workers.actor.output import LOGGER, WorkerLog, configure_logger
from lockstep.workers.actor.training_log import TrainingLog
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.calls import PLACEMENT_TIMEOUT_S, Status, name_of
from lockstep.workers.datasets import DataCache
from lockstep.workers.engine import Ledger, Origin, PeerLost, Stopped
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.exchange.membership import Dismissed, Membership
from lockstep.workers.engine.exchange.transport import Endpoint
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.storage import followed
from lockstep.workers.training import check_device, device_of, train

LAST_WORDS_S = 5.0
"""How long a worker that ends goes on trying to report what it has seen before, and to deliver what it has printed."""

log = logging.getLogger(LOGGER)


class Location(NamedTuple):
    """Where a worker is: the name or address of its machine that other ranks can reach, and Ray's id of its node."""

    host: str
    node_id: str


class Assignment:
    """One worker of one attempt. Training runs in a thread of its own.

    Args:
        order: what to do.
        number: of the worker within the attempt.
        ordered_at: when the launcher wanted this worker, as time.time() tells there.
        place: where this worker is.
        cache: data that is in memory already.
        logs: folder of what workers on this machine print.
        prepare: called by the thread first.
        clear_away: called by the thread at its end, when all was in order; what it returns is told with the end.
    """

    def __init__(
        self,
        order: StartGang,
        number: int,
        ordered_at: float,
        place: Location,
        cache: DataCache,
        logs: Path,
        prepare: Callable[[], None],
        clear_away: Callable[[], dict[str, Any]],
    ) -> None:
        self.order, self.number, self.name = order, number, name_of(order, number)
        endpoint = Endpoint(place.host)
        self._ledger = Ledger(min(max(0.0, time.time() - ordered_at), PLACEMENT_TIMEOUT_S))
        self._ledger_reports = LedgerReports(order, number, place.node_id, self._ledger, self._rank)
        self.address = endpoint.address
        self.watchdog = Watchdog(order.spec.recovery.hang_timeout_s)
        self.reporter = TrainingLog(order, self.watchdog, self._went_on, self._refused)
        self._printed = WorkerLog(order, number, logs)
        self._device = device_of(order.spec)
        self.membership = Membership(endpoint, order.attempt_token.encode(), self._device, self._lost)
        self._cache, self._prepare, self._clear_away = cache, prepare, clear_away
        self._changed = threading.Condition()
        self._forming = threading.Lock()
        self._status = Status()
        self._thread = threading.Thread(target=self._run, name="train", daemon=True)

    @property
    def has_ended(self) -> bool:
        """Whether it trains no more."""
        return self._status.has_ended

    def start(self) -> None:
        """Begin to read the data and to wait for a group; returns at once."""
        self._thread.start()

    def form(self, generation: int, rank: int, addresses: list[str], why: str) -> None:
        """Belong to a new generation; see `Membership.form`. `why` is what to tell people when training goes on."""
        with self._forming:  # two calls may come at once, each in a thread
            if generation > self.membership.current.number and not self._status.has_finished:
                self.reporter.pauses(why)
                self.reporter.lead(generation, rank == 0)
                self._printed.mark_rank(rank)
                log.info("joined as rank %d of %d", rank, len(addresses))
                self.membership.form(generation, rank, addresses)

    def _rank(self) -> int | None:
        told = self.membership.current
        return told.rank if told.number else None

    def status(self, known: Status | None, wait_s: float) -> Status:
        """What has happened, as soon as it differs from what is known, or after a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._status != known, wait_s)
            return self._status

    def _tell(self, **changes: Any) -> None:
        with self._changed:
            self._status = self._status._replace(**changes)
            self._changed.notify_all()

    def _lost(self, generation: int) -> None:
        """A group was lost; with 0, this worker is ready for its first one."""
        hardware = f"{hardware_class(self._device)}, engine {ENGINE_VERSION}"
        lost_generation = max(generation, self._status.lost_generation)
        self.reporter.prepared()
        data = self.reporter.data_digest
        self._tell(is_prepared=True, lost_generation=lost_generation, hardware=hardware, data=data)

    def _went_on(self) -> None:
        """A step is done, the first one since the group was lost."""
        self._tell(went_on_in=self.membership.current.number)

    def _refused(self, number: int, why: str) -> None:
        self._tell(refused_stop=number, refused_because=why)

    def _run(self) -> None:
        order, error_bytes, was_dismissed, has_lost_peer = self.order, b"", False, False
        recovery = order.spec.recovery
        ended: dict[str, Any] = {}
        try:
            self._prepare()
            configure_logger()
            self._printed.begin()
            check_device(order.spec)
            self._ledger_reports.start()
            named = order.spec.init_from.uri  # and not by the server, which has kept it beside others' folders
            first_weights = followed(named) if named else order.init_from_uri
            origin = Origin(checkpoints_of(order), recovery.checkpoint_every_steps, first_weights)
            try:
                train(
                    order.spec,
                    None,
                    self.reporter,
                    regroup=self.membership.next_group,
                    origin=origin,
                    cache=self._cache,
                    ledger=self._ledger,
                )
            except Stopped:
                log.info("stopped, as it was asked for")
                self.reporter.flush()
            self._tell(has_finished=True)
        except Dismissed:
            log.info("left the job: this worker is not needed any more")
            was_dismissed = True
        except BaseException as error:
            failure = job_error(error, self.membership.current.rank)
            if is_of_the_user(error):
                log.error("this worker cannot go on: %s: %s", failure.reason, failure.message)
            else:
                log.exception("this worker cannot go on")
            error_bytes = failure.SerializeToString()
            has_lost_peer = isinstance(error, PeerLost)
        try:
            self._ledger.leave_step()  # an error may have come in the middle of one
            self._ledger.enter(Phase.IDLE)
            ended["has_left_log"] = not self._printed.end(LAST_WORDS_S)
            self.reporter.close(LAST_WORDS_S)
            self.membership.close()
            self._ledger_reports.close(LAST_WORDS_S)
            if not error_bytes:  # one in which anything went wrong is not used again
                ended |= self._clear_away()
        except Exception:
            log.exception("the process is not used again")
        self._tell(
            has_ended=True,
            error_bytes=error_bytes,
            was_dismissed=was_dismissed,
            has_lost_peer=has_lost_peer,
            **ended,
        )


def checkpoints_of(order: StartGang) -> Checkpoints:
    """The checkpoints of a job, which say on what their bits depend."""
    facts = {
        "job_id": order.job_id,
        "engine_version": ENGINE_VERSION,
        "hardware_class": hardware_class(device_of(order.spec)),
    }
    if order.curve_digest:
        facts["curve_digest"] = order.curve_digest
    spec = json_format.MessageToDict(order.spec, preserving_proto_field_name=True)
    return Checkpoints(order.checkpoint_uri, order.spec.recovery.keep_checkpoints, facts, spec)
