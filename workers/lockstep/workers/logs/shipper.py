"""Brings what a worker prints to the coordinator: at a bounded rate, and however long the coordinator is away."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import grpc
import structlog

from lockstep.contract.metadata import ATTEMPT_TOKEN
from lockstep.v1.internal_service_pb2 import ReportLogsRequest
from lockstep.workers.connection import COORDINATOR, FINAL_CODES
from lockstep.workers.logs.lines import CHUNK_BYTES, Line, Lines
from lockstep.workers.logs.spool import Spool, State
from lockstep.workers.logs.times import COARSE_S, PrintTimes

BYTES_PER_S = 256 << 10
"""What one worker may print in the long run, each line counted as LINE_BYTES more than it has."""
BURST_BYTES = 8 << 20
"""What it may print at once after it was quiet."""
LINE_BYTES = 64
SLACK_BYTES = 1 << 20
"""How far delivery may lag behind what is allowed before lines are dropped."""
UNFREED_BYTES = 64 << 20
"""What a worker may print in all where the file system cannot free the front of a file."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.25
CALL_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.5
ASK_AGAIN_AFTER_S = 30.0
"""How long after a server has refused lines it is asked again."""
REFUSALS = (*FINAL_CODES, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED)
"""Answers that the same lines would get again from the same server."""

log = structlog.get_logger()

TOO_FAST = f"the worker printed more than {BYTES_PER_S >> 10} KiB a second"
NO_SERVER = "the server was away for too long"
REFUSED = "the server refused what the worker printed"
NOT_FREED = "nothing more that this worker prints is kept, for the file system of its log cannot free what was read"


class Shipper:
    """Delivers one spool, from a thread of its own between `start` and `close`, or at once by `deliver_rest`.

    Args:
        spool: where the lines are. It is removed when all has arrived at the end, else only closed.
        address: tells where the coordinator is now, host:port.
        times: tells when what was printed; None when nobody knows it any more.
    """

    def __init__(self, spool: Spool, address: Callable[[], str], times: PrintTimes | None = None) -> None:
        self._spool, self._address, self._times = spool, address, times
        self._lines = Lines(spool)
        self._changed = threading.Condition()
        self._closes_at: float | None = None
        self._allowed_bytes, self._allowed_at = float(BURST_BYTES), time.monotonic()
        self._freed_to = spool.state.position
        self._refused_by, self._asks_again_at = "", 0.0
        self._is_of_no_use = False
        self._is_kept = True
        self._is_done = False
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def start(self) -> None:
        """Begin to deliver what comes; returns at once."""
        self._thread.start()

    def let_go(self) -> None:
        """Leave the descriptors 1 and 2 alone from now on: they are about to lead elsewhere."""
        with self._changed:
            self._is_kept = False

    def close(self, patience_s: float) -> bool:
        """Deliver the rest, within a time, and end; nothing more may be printed into the spool.

        Returns:
            False when something is left for a sweep.
        """
        with self._changed:
            self._closes_at = time.monotonic() + patience_s
            self._changed.notify_all()
        self._thread.join()
        return self._is_done

    def deliver_rest(self, patience_s: float) -> bool:
        """Deliver what a worker that is gone has left; False when it has not arrived in time."""
        self._closes_at = time.monotonic() + patience_s
        self._is_kept = False  # nothing is printed any more
        self._run()
        return self._is_done

    def _run(self) -> None:
        try:
            self._ship()
        except OSError as error:  # the disk is full, or worse: whoever prints must not make it still fuller
            self._give_up(error)
        except Exception as error:  # what stands there is of no use to the next sweep either
            self._is_of_no_use = True
            self._give_up(error)
        finally:
            self._is_done = self._is_of_no_use or self._spool.state.position == self._spool.size()
            (self._spool.remove if self._is_done else self._spool.close)()

    def _give_up(self, error: Exception) -> None:
        """Keep nothing more, but hold the files as long as somebody may write to them: their numbers are used again."""
        log.warning("what the worker prints is not kept", job_id=self._spool.label.job_id, error=str(error))
        with self._changed:
            while self._closes_at is None:
                with contextlib.suppress(OSError):  # no descriptor is free; soon one may be
                    self._keep_nothing()
                self._changed.wait_for(lambda: self._closes_at is not None, RETRY_AFTER_S if self._is_kept else None)

    def _ship(self) -> None:
        with self._changed:  # a job that begins has better things to do than to tell that it does
            self._changed.wait_for(lambda: self._closes_at is not None, LONGEST_PAUSE_S)
        pause_s = SHORTEST_PAUSE_S
        while True:
            closes_at = self._closes_at
            has_come = self._ship_some(closes_at is not None)
            if closes_at is not None and (not has_come or time.monotonic() >= closes_at):
                return
            pause_s = SHORTEST_PAUSE_S if has_come else min(2 * pause_s, LONGEST_PAUSE_S)
            if self._lines.backlog_bytes() < CHUNK_BYTES or not has_come:
                with self._changed:
                    self._changed.wait_for(lambda: self._closes_at is not None, pause_s)

    def _ship_some(self, is_closing: bool) -> bool:
        """Deliver the next lines if there are any that may go now; False when there was nothing to do."""
        self._drop_what_is_too_much(TOO_FAST)
        if self._is_too_fast() and not is_closing:
            return False
        before = self._lines.state()
        lines = self._lines.read(to_the_end=is_closing)
        read_bytes = 0 if lines and lines[0].is_notice else self._lines.position - before.position
        self._allowed_bytes -= read_bytes + LINE_BYTES * len(lines)
        if self._lines.position == before.position:
            return False
        if lines and not self._deliver(lines, before):
            return False
        self._spool.save(self._lines.state())
        if self._freed_to + CHUNK_BYTES <= self._lines.position:
            self._free(self._lines.position)
        return True

    def _is_too_fast(self) -> bool:
        """Whether nothing may go for a while; a chunk goes when it may go whole."""
        now = time.monotonic()
        grown = self._allowed_bytes + BYTES_PER_S * (now - self._allowed_at)
        self._allowed_bytes, self._allowed_at = min(grown, BURST_BYTES), now
        return self._allowed_bytes < CHUNK_BYTES

    def _drop_what_is_too_much(self, why: str, before: State | None = None) -> None:
        """Bound what waits, and with it the file.

        Args:
            why: there is too much.
            before: what was delivered, when a part of what was read, or the notice of a gap, is still under way.
        """
        if self._lines.backlog_bytes() <= SLACK_BYTES + max(0.0, self._allowed_bytes):
            return
        self._lines.drop(why)
        delivered = before or self._lines.state()
        gap = noted = self._lines.gap
        if gap is not None and delivered.gap is not None and delivered.gap.end == gap.start:
            # Delivery stands between the two: until the first one's notice has arrived, one note tells of both.
            noted = gap._replace(start=delivered.gap.start, lines=delivered.gap.lines + gap.lines)
        self._spool.save(State(delivered.position, delivered.rank, noted))
        if gap is not None and not self._spool.free(gap.start, gap.end):
            self._stop_keeping()

    def _free(self, end: int) -> None:
        if self._spool.free(self._freed_to, end):
            self._freed_to = end
        else:
            self._stop_keeping()

    def _stop_keeping(self) -> None:
        """Where nothing can be freed: once there is much, what is printed goes nowhere."""
        if self._is_kept and self._spool.size() > UNFREED_BYTES:
            os.write(self._spool.data, f"{NOT_FREED}\n".encode())
            self._keep_nothing()

    def _keep_nothing(self) -> None:
        with self._changed:
            if self._is_kept and self._closes_at is None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                try:
                    for descriptor in (1, 2):
                        os.dup2(nowhere, descriptor)
                finally:
                    os.close(nowhere)
            self._is_kept = False

    def _deliver(self, lines: list[Line], before: State) -> bool:
        """Have lines arrive; False when they did not in time."""
        request = self._request(lines)
        metadata = ((ATTEMPT_TOKEN, self._spool.label.token),)
        while not self._is_of_no_use:
            address, is_last = self._address(), self._closes_at is not None
            try:
                if is_last or address != self._refused_by or time.monotonic() >= self._asks_again_at:
                    stub = COORDINATOR.stub(address)
                    stub.ReportLogs(request, metadata=metadata, timeout=self._call_timeout_s())
                    self._refused_by = ""
                    return True
            except ValueError:  # the coordinator has just moved
                continue
            except grpc.RpcError as error:
                if error.code() in REFUSALS:
                    self._note_refusal(address, error.code(), is_last=is_last)
                    continue
            self._is_too_fast()  # what may be printed grows meanwhile
            self._drop_what_is_too_much(REFUSED if self._refused_by else NO_SERVER, before)
            with self._changed:
                if self._closes_at is None:
                    self._changed.wait_for(lambda: self._closes_at is not None, RETRY_AFTER_S)
                elif (left_s := self._closes_at - time.monotonic()) > 0:
                    self._changed.wait(min(RETRY_AFTER_S, left_s))
                else:
                    return False
        return True  # whoever refuses lines at the end gets none of those that follow

    def _note_refusal(self, address: str, code: grpc.StatusCode, *, is_last: bool) -> None:
        """Another server may listen there for a moment, or this one may move: only at the end there is no use in it."""
        if address != self._refused_by:
            words = "the server refuses what the worker prints"
            log.warning(words, job_id=self._spool.label.job_id, address=address, code=code.name)
        self._refused_by, self._asks_again_at = address, time.monotonic() + ASK_AGAIN_AFTER_S
        self._is_of_no_use = is_last

    def _call_timeout_s(self) -> float:
        if self._closes_at is None:
            return CALL_TIMEOUT_S
        return max(0.1, self._closes_at - time.monotonic())

    def _request(self, lines: list[Line]) -> ReportLogsRequest:
        label = self._spool.label
        request = ReportLogsRequest(
            job_id=label.job_id, attempt=label.attempt, number=label.number, spool=self._spool.key
        )
        at_latest = min(time.time(), self._spool.printed_at() + COARSE_S)
        for line in lines:
            told = request.lines.add(rank=line.rank, text=line.text, is_notice=line.is_notice)
            printed_at = self._times.of(line.end, at_latest) if self._times is not None else at_latest
            told.time.FromMicroseconds(int(1e6 * printed_at))
            request.ends.append(line.end)
        return request
