"""Worker processes: which work, which are warm and wait for a job, and which are made or ended for that.

A process that has done its part of a job in order is kept for the next job of the same owner that wants workers of the
same shape. Idle ones never stand in the way: whoever needs their room ends them. Some are kept ready for whoever comes,
where there is room.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from ray.exceptions import ActorUnavailableError

from lockstep.v1.internal_service_pb2 import StartGang, WorkerProcess
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers import awake_clock
from lockstep.workers.calls import POLL_S, WARM_UP_S, Rest, name_of
from lockstep.workers.failures import in_our_words
from lockstep.workers.launcher.fleet import ASK_AGAIN_AFTER_S, GPU, Fleet, Process, Shape
from lockstep.workers.launcher.gpu_room import Held, has_room, is_as_planned, is_led_astray

QUIET_S = 1.0
"""How long nothing must have happened before a spare worker is made, which takes seconds of a CPU."""
SPARE_RETRY_S = 30.0
"""How long after a spare worker has failed before the next is made; twice as long after each that follows."""
LONGEST_SPARE_RETRY_S = 1800.0
SILENT_S = POLL_S + 10.0
"""How long an idle worker may owe an answer."""
LOOK_EVERY_S = 1.0

log = structlog.get_logger()


class Pool:
    """All worker processes of this launcher. Callable from any thread.

    Args:
        fleet: makes and ends them.
        options: how many are kept warm, and for how long.
        tell_changed: called when `processes` would give something else than before.
    """

    def __init__(self, fleet: Fleet, options: LauncherOptions, tell_changed: Callable[[], None]) -> None:
        self._fleet, self._options, self._tell_changed = fleet, options, tell_changed
        self._lock = threading.RLock()
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._processes: dict[str, Process] = {}
        self._wanted_shape, self._wanted_owner = Shape(), ""
        self._spare_at = 0.0
        self._failed_spares = 0  # since one has got warm

    def start(self) -> None:
        """Begin to look after idle workers; returns at once."""
        self._spare_at = max(self._spare_at, awake_clock.now() + QUIET_S)  # jobs may wait
        threading.Thread(target=self._keep, name="pool", daemon=True).start()

    # For those who need workers.

    def take(self, order: StartGang, node_id: str, number: int, *, fresh: bool = False) -> Process:
        """A process for a worker of an attempt: a warm one if there is one that may be used, else a new one.

        Args:
            order: of the attempt.
            node_id: where it shall be.
            number: of the worker in the attempt.
            fresh: it must be a new one.
        """
        shape = Shape.of(order.spec.resources)
        with self._lock:
            self._wanted_shape, self._wanted_owner = shape, order.owner
            fitting = [] if fresh else [process for process in self._fitting() if self._may_take(process, node_id)]
            if fitting:
                # Its own data is in memory, and the newest is the one that is still in the caches of the CPU.
                process = max(fitting, key=lambda p: (p.is_warm, p.owner == order.owner, p.resting_since))
                process.is_reused = True
            else:
                for idle in self._in_the_way(node_id, shape):
                    log.info("ended an idle worker to make room", worker=idle.name, job_id=order.job_id)
                    self.end(idle)
                process = self._fleet.create(shape, node_id)
                self._processes[process.name] = process
            process.owner, process.idle_since, process.assignment = order.owner, None, name_of(order, number)
            self._has_changed()
            return process

    def is_up(self, process: Process, pid: int, gpu_ids: tuple[str, ...]) -> None:
        """Note that a process that was taken has answered."""
        with self._lock:
            if (process.pid, process.gpu_ids) != (pid, gpu_ids):
                process.pid, process.gpu_ids = pid, gpu_ids
                self._tell_changed()

    def give_back(self, process: Process, memory_bytes: int, *, has_left_log: bool = False) -> None:
        """Take a process back that is as good as a new one.

        Args:
            process: it.
            memory_bytes: what it takes.
            has_left_log: not all that it has printed was delivered.
        """
        if has_left_log:
            self._fleet.log_sweeps.soon(process.node_id)
        with self._lock:
            assignment, process.assignment = process.assignment, ""
            if process.is_ended:
                return
            if self._options.warm_ttl_s <= 0 and len(self._fitting()) >= self._options.warm_workers:
                self.end(process)
                return
            process.is_warm, process.memory_bytes = True, memory_bytes
            self._rest(process, assignment)
            self._has_changed()

    def end(self, process: Process) -> None:
        """End a process, whatever it does; harmless when it has ended."""
        with self._lock:
            process.idle_since = None
            was_there = self._processes.pop(process.name, None) is not None
            self._fleet.end(process)
            if was_there:
                self._has_changed()

    def adopt(self, process: Process, assignment: str) -> None:
        """Take over a process of an earlier launcher; an empty assignment means that it is idle."""
        with self._lock:
            self._processes[process.name] = process
            process.assignment = assignment
            if not assignment:
                self._rest(process, "")
            self._has_changed()

    def drain(self) -> None:
        """Keep no worker warm from now on."""
        with self._lock:
            self._options = LauncherOptions()
            for process in self._idle():
                self.end(process)

    def processes(self) -> list[WorkerProcess]:
        """All of them as the coordinator is told."""
        with self._lock:
            return [_message_of(process) for process in self._processes.values()]

    # Idle ones.

    def _idle(self) -> list[Process]:
        """Those that wait for a job, the one that has waited for longest first."""
        idle = [process for process in self._processes.values() if process.idle_since is not None]
        return sorted(idle, key=lambda process: process.resting_since)

    def _fitting(self) -> list[Process]:
        """Idle ones that the newest job could have used."""
        owners = (None, self._wanted_owner)
        return [process for process in self._idle() if process.shape == self._wanted_shape and process.owner in owners]

    def _in_the_way(self, node_id: str, shape: Shape) -> Iterable[Process]:
        """Idle ones that hold what a new worker on their node needs, while they do."""
        for process in self._idle():
            room = self._fleet.room().get(node_id)
            if room is None or not (lacking := self._lacking(node_id, shape, room)):
                break
            if process.node_id == node_id and any(process.shape[kind] > 0 for kind in lacking):
                yield process
        if 0 < shape.gpus < 1:  # those that share GPUs may have Ray choose another one than was planned
            for process in self._idle():
                working, idle = self._holders(node_id)
                if not is_led_astray(shape.gpus, self._fleet.usable_gpus(node_id), working, idle):
                    return
                if process.node_id == node_id and 0 < process.shape.gpus < 1:
                    yield process

    def _may_take(self, process: Process, node_id: str) -> bool:
        """Whether an idle process is where a job wants one; with a share of a GPU, of one that is as it was planned."""
        if process.node_id != node_id or not 0 < process.shape.gpus < 1:
            return process.node_id == node_id
        working, _ = self._holders(node_id)
        usable = self._fleet.usable_gpus(node_id)
        return any(is_as_planned(process.shape.gpus, gpu_id, usable, working) for gpu_id in process.gpu_ids)

    def _holders(self, node_id: str) -> tuple[list[Held], list[Held]]:
        """What those hold on a node that work for jobs, and the idle ones."""
        working: list[Held] = []
        idle: list[Held] = []
        for process in self._processes.values():
            if process.node_id == node_id:
                held = idle if process.idle_since is not None else working
                held.append((process.shape.gpus, process.gpu_ids))
        return working, idle

    def _lacking(self, node_id: str, shape: Shape, room: tuple[float, float]) -> list[int]:
        """Of which resources a node has not enough for one more worker, by number."""
        lacking = shape.lacking(room)
        if GPU not in lacking and shape.gpus > 0:  # there may be enough, and no GPU that has it
            working, idle = self._holders(node_id)
            if not has_room(shape.gpus, self._fleet.usable_gpus(node_id), [*working, *idle]):
                lacking.append(GPU)
        return lacking

    def _rest(self, process: Process, assignment: str) -> None:
        """Have a process wait for its next job, say at once what it holds, and see from now on that it lives."""
        process.idle_since = idle_since = time.time()
        process.resting_since = awake_clock.now()
        self._ask(process, idle_since, lambda: process.actor.rest.remote(assignment, 0.0))

    def _ask_again(self, process: Process, idle_since: float, ask: Callable[[], Any]) -> None:
        with self._lock:
            if process.idle_since == idle_since:
                self._ask(process, idle_since, ask, is_first=False)

    def _ask(self, process: Process, idle_since: float, ask: Callable[[], Any], *, is_first: bool = True) -> None:
        def answered(future: Any) -> None:
            # Ray waits for this call, and whoever holds the lock may wait for Ray.
            self._answers.put(lambda: self._take_answer(process, idle_since, ask, future))

        if is_first:  # else it still owes the answer
            process.asked_at = awake_clock.now()
        ask().future().add_done_callback(answered)

    def _take_answer(self, process: Process, idle_since: float, ask: Callable[[], Any], future: Any) -> None:
        error = future.exception()
        with self._lock:
            if process.idle_since != idle_since:  # it has found work meanwhile, or was ended
                return
            if error is None:
                self._has_answered(process, future.result())
                self._ask(process, idle_since, lambda: process.actor.rest.remote(""))
            elif isinstance(error, ActorUnavailableError):
                again = threading.Timer(ASK_AGAIN_AFTER_S, self._ask_again, (process, idle_since, ask))
                again.daemon = True
                again.start()
            else:
                self._end_lost(process, "an idle worker is gone", error=in_our_words(error))

    def _end_lost(self, process: Process, what: str, **facts: Any) -> None:
        """End an idle process that is of no use; after one that did not get warm the next spare comes later."""
        delay_s = QUIET_S
        if not process.is_warm:
            delay_s = min(SPARE_RETRY_S * 2.0 ** min(self._failed_spares, 10), LONGEST_SPARE_RETRY_S)
            self._failed_spares += 1
            facts |= {"failed_in_a_row": self._failed_spares, "next_spare_in_s": delay_s}
        log.warning(what, worker=process.name, node_id=process.node_id, is_warm=process.is_warm, **facts)
        self.end(process)
        self._spare_at = max(self._spare_at, awake_clock.now() + delay_s)

    def _has_answered(self, process: Process, rest: Rest) -> None:
        if not process.is_warm:
            self._failed_spares = 0
        known = (process.is_warm, process.pid, process.memory_bytes, process.data_bytes, process.gpu_ids)
        process.is_warm = True
        process.pid, process.memory_bytes, process.data_bytes, process.gpu_ids = rest
        if known != (True, *rest):
            self._tell_changed()

    def _has_changed(self) -> None:
        self._spare_at = max(self._spare_at, awake_clock.now() + QUIET_S)
        self._tell_changed()

    def _keep(self) -> None:
        while True:
            try:
                self.hear(LOOK_EVERY_S)
                self.look_after()
            except Exception:  # Ray may be away for a while
                log.exception("the idle workers could not be looked after")

    def hear(self, wait_s: float) -> None:
        """Take what idle workers have answered; waits so long for the first of it."""
        with contextlib.suppress(queue.Empty):
            self._answers.get(timeout=wait_s)()
            while True:
                self._answers.get_nowait()()

    def look_after(self) -> None:
        """End idle workers whose time is over or that do not answer, and make a spare if one is missing."""
        with self._lock:
            now, spares = awake_clock.now(), self._options.warm_workers
            for process in self._idle():
                if now - process.asked_at > (SILENT_S if process.is_warm else WARM_UP_S):
                    self._end_lost(process, "ended an idle worker that does not answer")
            kept = self._fitting()[-spares:] if spares else []
            for process in self._idle():
                if process not in kept and now - process.resting_since > self._options.warm_ttl_s:
                    self.end(process)
            if len(kept) < spares and now >= self._spare_at:
                self._make_spare()

    def _make_spare(self) -> None:
        shape = self._wanted_shape
        rooms = {node: room for node, room in self._fleet.room().items() if not self._lacking(node, shape, room)}
        if not rooms:
            return
        node_id = max(rooms, key=lambda node_id: (rooms[node_id], node_id))
        process = self._fleet.create(shape, node_id)
        self._processes[process.name] = process
        process.idle_since = idle_since = time.time()
        process.resting_since = awake_clock.now()
        self._ask(process, idle_since, lambda: process.actor.warm_up.remote())
        log.info("a spare worker warms up", worker=process.name, node_id=node_id)
        self._has_changed()


def _message_of(process: Process) -> WorkerProcess:
    message = WorkerProcess(
        node_id=process.node_id,
        pid=process.pid,
        cpus=process.shape.cpus,
        gpus=process.shape.gpus,
        owner=process.owner,
        is_warm=process.is_warm,
        memory_bytes=process.memory_bytes,
        data_bytes=process.data_bytes,
        gpu_ids=process.gpu_ids,
    )
    if process.idle_since is not None:
        message.idle_since.FromMicroseconds(int(1e6 * process.idle_since))
    if process.assignment:
        job_id, attempt, number = process.assignment.rsplit("/", 2)
        message.job_id, message.attempt, message.number = job_id, int(attempt), int(number)
    return message
