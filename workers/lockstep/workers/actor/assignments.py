"""What a worker process does: one assignment after another, and nothing in between, for which it stays warm."""

import os
import threading
from typing import Any

import ray
import structlog

from lockstep.contract.facts import ENGINE_VERSION
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers import awake_clock
from lockstep.workers.actor.assignment import Assignment, Location
from lockstep.workers.actor.ending_signals import heed_in_children_only, start_children_as_usual
from lockstep.workers.actor.reset import CleanSlate, free_memory, memory_bytes
from lockstep.workers.calls import POLL_S, Description, Presence, Rest, Status, Unfit, name_of
from lockstep.workers.datasets import DataCache
from lockstep.workers.logs.spool import folder_of
from lockstep.workers.training import train_once

ORPHANED_AFTER_S = 600.0
"""How long an idle worker waits for a launcher that looks after it."""

log = structlog.get_logger()


class Assignments:
    """Those of this process; the methods are those of `Worker`, which a launcher calls.

    All return soon, or after POLL_S at the latest, so that a launcher that has died leaves nothing waiting here.

    Args:
        options: what the operator has set; it says what a worker may hold while it is idle.
        cpus: that it holds; told to launchers that come later.
        gpus: likewise.
    """

    def __init__(self, options: LauncherOptions, cpus: float, gpus: float) -> None:
        if threading.current_thread() is threading.main_thread():
            heed_in_children_only()
        self._options, self._cpus, self._gpus = options, cpus, gpus
        context = ray.get_runtime_context()
        self._node_id: str = context.get_node_id()
        self._gpu_ids = tuple(context.get_accelerator_ids().get("GPU", ())) if gpus else ()
        self._logs = folder_of(context.namespace)
        self._place = Location(ray.util.get_node_ip_address(), self._node_id)  # type: ignore[no-untyped-call]
        self._data = DataCache(options.data_cache_bytes)
        self._epoch = 0
        self._owner: str | None = None
        self._changed = threading.Condition()
        self._assignment: Assignment | None = None
        self._forgotten = ""
        self._is_warming_up = threading.Lock()
        self._slate = CleanSlate()
        self._orphaned = threading.Timer(ORPHANED_AFTER_S, self._end)
        self._look_after()

    # Idle.

    def warm_up(self) -> Rest:
        """Do once what takes long the first time, unless there is an assignment already."""
        with self._is_warming_up:
            if self._assignment is None:
                train_once(self._gpus)
                self._slate.put_back()
        return self._how_it_is()

    def rest(self, assignment: str, wait_s: float = POLL_S) -> Rest:
        """Forget an assignment that is over, and wait for the next, or for a while.

        Args:
            assignment: the one that is over, by name; another one is not touched.
            wait_s: how long.
        """
        with self._changed:
            if self._assignment is not None and self._assignment.name == assignment:
                self._assignment, self._forgotten = None, assignment
            self._look_after()
            self._changed.wait_for(lambda: self._assignment is not None, wait_s)
            return self._how_it_is()

    def _how_it_is(self) -> Rest:
        return Rest(os.getpid(), memory_bytes(), self._data.size_bytes, self._gpu_ids)

    def _look_after(self) -> None:
        """Somebody has asked: only a worker that is idle and that nobody asks for long ends itself."""
        self._orphaned.cancel()
        self._asked_at = awake_clock.now()
        if self._assignment is None:
            self._orphaned = threading.Timer(ORPHANED_AFTER_S, self._end)
            self._orphaned.daemon = True
            self._orphaned.start()

    def _end(self) -> None:
        with self._changed:
            if self._assignment is not None:
                return
            if awake_clock.now() - self._asked_at >= ORPHANED_AFTER_S / 2:
                os._exit(0)
            self._look_after()  # this process was stopped for most of the time, and the launcher may have been, too

    # An assignment.

    def begin(self, order_bytes: bytes, number: int, ordered_at: float) -> Presence:
        """Take an assignment; returns at once where this worker listens for the others.

        Args:
            order_bytes: the serialized StartGang.
            number: of this worker in the attempt.
            ordered_at: when it was wanted, as time.time() tells.

        Raises:
            Unfit: this worker must not take it.
        """
        order = StartGang.FromString(order_bytes)
        with self._changed:
            current = self._assignment
            if current is None or current.name != name_of(order, number):
                self._check_that_it_may_take(order, number)
                self._epoch, self._owner = max(order.epoch, self._epoch), order.owner
                self._forgotten = current.name if current is not None else self._forgotten
                current = Assignment(
                    order, number, ordered_at, self._place, self._data, self._logs, self._prepare, self._clear_away
                )
                self._assignment = current
                self._look_after()
                current.start()
                self._changed.notify_all()
            return Presence(current.address, os.getpid(), self._gpu_ids)

    def _check_that_it_may_take(self, order: StartGang, number: int) -> None:
        # One that is over is forgotten by a call that may come later than this.
        if self._assignment is not None and not self._assignment.has_ended:
            raise Unfit(f"the worker is busy with {self._assignment.name}")
        if name_of(order, number) == self._forgotten:
            raise Unfit(f"{self._forgotten} is over")
        if order.epoch < self._epoch:
            raise Unfit(f"the order is of epoch {order.epoch}, of an earlier coordinator than {self._epoch}")
        if self._owner not in (None, order.owner):
            raise Unfit("the worker has worked for another owner")

    def form(self, assignment: str, epoch: int, generation: int, rank: int, addresses: list[str], why: str) -> None:
        """Belong to a new generation of an assignment.

        Args:
            assignment: its name.
            epoch: the coordinator's; orders of a lower one than seen before are ignored.
            generation: its number.
            rank: this worker's rank in it.
            addresses: the endpoints of all ranks.
            why: what to tell people when training goes on, such as "healed".
        """
        current = self._obeying(assignment, epoch)
        if current is not None:
            current.form(generation, rank, addresses, why)

    def dismiss(self, assignment: str, epoch: int) -> None:
        """Leave the assignment; the others go on."""
        current = self._obeying(assignment, epoch)
        if current is not None:
            current.membership.dismiss()

    def stop(self, assignment: str, epoch: int, keep: bool, refusable: int = 0) -> None:
        """Stop training at the next step boundary, all ranks together; see `Reporter.stop`."""
        current = self._obeying(assignment, epoch)
        if current is not None:
            current.reporter.stop(keep, refusable)

    def status(self, assignment: str, known: Status | None) -> Status:
        """What has happened, as soon as it differs from what is known, or after a while."""
        with self._changed:  # this call may overtake the one that begins
            self._changed.wait_for(lambda: self._current(assignment) is not None, POLL_S)
            current = self._current(assignment)
        return current.status(known, POLL_S) if current is not None else Status()

    def why_hung(self, assignment: str) -> str | None:
        """Why this worker counts as hung; None when it does not. Answering at all is a sign of life."""
        current = self._current(assignment)
        return current.watchdog.why_hung() if current is not None else None

    def describe(self, epoch: int, reports_address: str) -> Description:
        """Tell a launcher of a newer epoch who this is, and report to its coordinator, at that address, from now on."""
        about = Description(ENGINE_VERSION, self._cpus, self._gpus, self._owner, self._node_id, os.getpid())
        about = about._replace(gpu_ids=self._gpu_ids)
        with self._changed:
            current = self._assignment
        if current is None or self._obeying(current.name, epoch) is None:
            self._epoch = max(epoch, self._epoch)
            return about
        current.reporter.redirect(reports_address)
        membership = current.membership
        told, status = membership.current, current.status(None, 0)
        return about._replace(
            order_bytes=current.order.SerializeToString(),
            number=current.number,
            generation=told.number,
            rank=told.rank,
            address=current.address,
            members=len(told.addresses),
            since=membership.first_number,
            hardware=status.hardware,
            data=status.data,
            has_ended=status.has_ended,
            is_dismissed=membership.is_dismissed,
        )

    def _current(self, name: str) -> Assignment | None:
        current = self._assignment
        return current if current is not None and current.name == name else None

    def _obeying(self, name: str, epoch: int) -> Assignment | None:
        """The assignment that an order is for, if it is to be obeyed."""
        current = self._current(name)
        if current is not None and epoch < self._epoch:
            log.warning("ignored an order of an earlier coordinator", job_id=current.order.job_id)
            return None
        self._epoch = max(epoch, self._epoch)
        return current

    def _prepare(self) -> None:
        """Wait for the end of a warm-up, whose training would disturb that of an assignment; by the training thread."""
        start_children_as_usual()
        with self._is_warming_up:
            self._slate.expect_threads()

    def _clear_away(self) -> dict[str, Any]:
        """Make the process as good as a new one; called by the thread that has trained."""
        left = self._slate.put_back()
        if memory_bytes() > self._options.warm_memory_bytes:
            self._data.clear()
            free_memory()
        memory = memory_bytes()
        if memory > self._options.warm_memory_bytes:
            left.append(f"{memory} bytes of memory")
        if left:
            log.info("the process is not used again", left=left)
        return {"is_reusable": not left, "memory_bytes": memory}
