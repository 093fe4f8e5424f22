"""The launcher: Lockstep's Ray driver.

A process of its own, started and restarted by the coordinator, because a Ray driver ends its own process when the
cluster's control store is away for long, takes over signal handlers and can block. It holds no state: orders come over
a stream from the coordinator and facts go back. It ends when its standard input closes or the stream breaks; its
workers go on, and the next launcher takes them over.

    python -m lockstep.workers.launcher < SETTINGS

The first line of the input is JSON: LauncherSettings.
"""

import contextlib
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TextIO, cast

import grpc
import structlog
from google.protobuf import json_format

from lockstep.contract.facts import ENGINE_VERSION
from lockstep.contract.metadata import LAUNCHER_TOKEN
from lockstep.v1.internal_service_pb2 import (
    ConnectLauncherRequest,
    ConnectLauncherResponse,
    GangStopped,
    Heartbeat,
    LauncherReady,
    StartGang,
    WorkerProcesses,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.launcher_pb2 import LauncherSettings
from lockstep.workers.calls import Description, name_of
from lockstep.workers.connection import OPTIONS
from lockstep.workers.launcher.attempt.adoption import adopted
from lockstep.workers.launcher.attempt.state import Plan
from lockstep.workers.launcher.fleet import Fleet, Process
from lockstep.workers.launcher.pool import Pool
from lockstep.workers.launcher.runner import AttemptRunner, TakenOver
from lockstep.workers.node.agent import duty_of

CAPACITY_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 1.0
"""How long this process may be silent; the coordinator replaces one that says nothing for long."""
FAREWELL_S = 0.5
"""How long this process may take to end when the coordinator is gone."""

log = structlog.get_logger()


class Lifeline:
    """The pipe from the coordinator: no launcher outlives that process, however it went.

    Attributes:
        ended: set when the pipe has closed.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()

    def watch(self) -> None:
        """Begin to watch; returns at once."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self.ended.set()
        time.sleep(FAREWELL_S)
        os._exit(1)  # a call to a Ray that is gone would hold a normal exit up


class Launcher:
    """Carries out the coordinator's orders on a fleet.

    Args:
        settings: what the coordinator said.
        fleet: the cluster.
        lifeline: tells when the coordinator is gone.
    """

    def __init__(self, settings: LauncherSettings, fleet: Fleet, lifeline: Lifeline) -> None:
        self._settings, self._fleet, self._ended = settings, fleet, lifeline.ended
        self._facts: queue.SimpleQueue[ConnectLauncherRequest | Callable[[], ConnectLauncherRequest] | None] = (
            queue.SimpleQueue()
        )
        self._pool = Pool(fleet, settings.options, self._processes_changed)
        self._will_tell_processes = threading.Event()
        self._attempts: dict[tuple[str, int], AttemptRunner] = {}
        self._is_drained = False

    def run(self) -> None:
        """Serve orders until the coordinator is gone; workers that are there go on."""
        gangs = [attempt.inventory() for attempt in self._take_over()]
        self._facts.put(ConnectLauncherRequest(ready=LauncherReady(epoch=self._settings.epoch, gangs=gangs)))
        for attempt in self._attempts.values():
            attempt.start()
        self._pool.start()
        threading.Thread(target=self._report_capacity, daemon=True).start()
        metadata = ((LAUNCHER_TOKEN, self._settings.launcher_token),)
        try:
            with grpc.insecure_channel(self._settings.coordinator_address, options=OPTIONS) as channel:
                orders = InternalServiceStub(channel).ConnectLauncher(self._tell(), metadata=metadata)
                threading.Thread(target=self._cancel_when_ended, args=(orders,), daemon=True).start()
                self._serve(orders)
        finally:
            self._ended.set()
            self._facts.put(None)
            if self._is_drained:
                self._fleet.agents.retire()

    def _tell(self) -> Iterator[ConnectLauncherRequest]:
        """Facts as they come, and signs of life between them."""
        while True:
            try:
                fact = self._facts.get(timeout=HEARTBEAT_EVERY_S)
            except queue.Empty:
                fact = ConnectLauncherRequest(heartbeat=Heartbeat())
            if fact is None:
                return
            yield fact() if callable(fact) else fact

    def _processes_changed(self) -> None:
        """Tell of the processes soon: once, and before anything that is told after this."""
        if not self._will_tell_processes.is_set():
            self._will_tell_processes.set()
            self._facts.put(self._told_processes)

    def _told_processes(self) -> ConnectLauncherRequest:
        self._will_tell_processes.clear()
        return ConnectLauncherRequest(processes=WorkerProcesses(processes=self._pool.processes()))

    def _take_over(self) -> Iterable[AttemptRunner]:
        """Take over the workers of earlier launchers; those that belong nowhere are ended."""
        gangs: dict[tuple[str, int], list[tuple[Process, Description]]] = {}
        for process, actor, told in self._fleet.inventory(self._settings.epoch, self._settings.reports_address):
            if process is None or told is None:
                log.info("ended a worker that says nothing")
                self._fleet.kill(actor)
            elif told.order_bytes:
                order = StartGang.FromString(told.order_bytes)
                gangs.setdefault((order.job_id, order.attempt), []).append((process, told))
            elif told.version == ENGINE_VERSION:
                self._pool.adopt(process, "")
            else:
                self._fleet.end(process)
        for key, workers in gangs.items():
            self._attempts[key] = self._adopt(workers)
            log.info("took over a gang", job_id=key[0], attempt=key[1], workers=len(workers))
        return self._attempts.values()

    def _adopt(self, workers: list[tuple[Process, Description]]) -> AttemptRunner:
        order = StartGang.FromString(workers[0][1].order_bytes)
        for process, told in workers:
            self._pool.adopt(process, name_of(order, told.number))
        attempt, is_whole = adopted(Plan.of(order), [told for _, told in workers])
        taken_over = TakenOver(attempt, {told.number: process for process, told in workers}, is_whole)
        return AttemptRunner(self._pool, order, self._facts.put, self._settings.epoch, taken_over)

    def _serve(self, orders: Iterator[ConnectLauncherResponse]) -> None:
        try:
            for order in orders:
                self._carry_out(order)
        except grpc.RpcError as error:
            if not self._ended.wait(FAREWELL_S):
                log.warning("the line to the coordinator broke", code=error.code().name)

    def _carry_out(self, order: ConnectLauncherResponse) -> None:
        match order.WhichOneof("order"):
            case "start_gang":
                start = order.start_gang
                if start.epoch < self._settings.epoch:
                    log.warning("refused an order of an earlier coordinator", job_id=start.job_id)
                    return
                attempt = AttemptRunner(self._pool, start, self._facts.put, self._settings.epoch)
                self._attempts = {key: other for key, other in self._attempts.items() if other.is_alive()}
                self._attempts[start.job_id, start.attempt] = attempt
                attempt.start()
            case "stop_gang":
                stop = order.stop_gang
                stopping = self._attempts.get((stop.job_id, stop.attempt))
                if stopping is not None and stopping.is_alive():
                    stopping.stop(stop)
                else:
                    gone = GangStopped(job_id=stop.job_id, attempt=stop.attempt)
                    self._facts.put(ConnectLauncherRequest(gang_stopped=gone))
            case "resize_gang":
                resize = order.resize_gang
                if (resize.job_id, resize.attempt) in self._attempts:
                    self._attempts[resize.job_id, resize.attempt].resize(resize)
            case "drain":
                self._is_drained = True
                self._pool.drain()

    def _report_capacity(self) -> None:
        """Tell the coordinator of the cluster's nodes whenever they change."""
        told = None
        try:
            while not self._ended.wait(CAPACITY_EVERY_S if told else 0):
                capacity = self._fleet.capacity()
                if capacity != told:
                    told = capacity
                    self._facts.put(ConnectLauncherRequest(capacity=capacity))
        finally:  # without Ray this launcher is of no use; the next one may find it again
            self._ended.set()

    def _cancel_when_ended(self, orders: grpc.Call) -> None:
        self._ended.wait()
        orders.cancel()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    settings = json_format.Parse(_first_line(), LauncherSettings())
    _configure_logs(settings.options.log_format)
    lifeline = Lifeline()
    lifeline.watch()
    try:
        fleet = Fleet(settings.ray_address, settings.namespace, settings.options)
        fleet.log_sweeps.begin(settings.reports_address)
        fleet.agents.begin(partial(duty_of, settings))
    except Exception as error:  # whatever Ray raises; the coordinator tries again
        log.error(
            "no use of Ray", address=settings.ray_address, error=f"{type(error).__name__}: {error}".splitlines()[0]
        )
        sys.exit(1)
    Launcher(settings, fleet, lifeline).run()
    os._exit(0)  # a normal exit would wait for Ray


class _Forgiving(io.TextIOBase):
    """Standard error for logs, as the server has it: what cannot be written is lost, and no failure of who logs."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _configure_logs(log_format: str) -> None:
    """Log as the server does, whose standard error this is."""
    stream = cast(TextIO, _Forgiving())
    shape: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    if log_format == "json":
        shape = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shape,
        ],
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    logging.basicConfig(level=logging.WARNING, stream=stream)


def _first_line() -> bytes:
    """The first line of the input, read byte by byte so that nothing behind it is taken along."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return line
