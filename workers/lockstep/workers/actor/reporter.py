"""How rank 0 tells the coordinator of points, progress, checkpoints and the result.

Every rank keeps the points until it knows that they are stored, since any rank may be the next rank 0. Training only
leaves a note in a bounded spool; a thread delivers. While a call is under way notes gather, and go together in the next
one. Whatever is said twice is stored once.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence

import grpc

from lockstep.contract.bounds import MOST_NOTES
from lockstep.contract.metadata import ATTEMPT_TOKEN
from lockstep.v1.checkpoint_service_pb2 import Checkpoint as CheckpointMessage
from lockstep.v1.checkpoint_service_pb2 import CheckpointFile
from lockstep.v1.internal_service_pb2 import KeptCheckpoints, ReportProgressRequest, StartGang, Startup
from lockstep.v1.job_pb2 import JobProgress, JobResult
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, METRIC_KIND_TIMING, MetricPoint
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.connection import COORDINATOR, FINAL_CODES
from lockstep.workers.engine import Activity, Listener, Point, Progress, Result, Wish
from lockstep.workers.engine.state.checkpoint import Checkpoint

SPOOL_POINTS = 50_000
"""Points that wait for delivery before training is held up."""
REPORT_POINTS = 10_000
"""Points of one report."""
REPORT_EVERY_S = 0.1
WAIT_FOR_POINTS_S = 0.02
CALL_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.5


class Reporter(Listener):
    """The listener of a rank of an attempt; it reports while its rank is 0.

    Args:
        order: the job, its attempt, where to report and the token that proves the right to.
        watchdog: gets the signs of life.
        went_on: called when the first step in a generation is done.
        refused: called with the number of an order to stop that is not followed, and why.

    Attributes:
        data_digest: names the data that was read; empty before.
    """

    data_digest = ""

    def __init__(
        self,
        order: StartGang,
        watchdog: Watchdog,
        went_on: Callable[[], None] = lambda: None,
        refused: Callable[[int, str], None] = lambda number, why: None,
    ) -> None:
        self._order, self._watchdog, self._tell_went_on, self._tell_refused = order, watchdog, went_on, refused
        self._changed = threading.Condition()
        self._points: list[Point] = []
        self._acknowledged_step = 0
        self._status = ReportProgressRequest()
        self._progress = JobProgress()
        self._began: JobProgress | None = None  # where an attempt goes on, until that is told
        self._wish = Wish.GO_ON
        self._refusable = self._refused = 0
        self._generation = 0
        self._sequence = 0
        self._leads = False
        self._is_busy = False
        self._is_flushing = False
        self._is_over = False
        self._is_closed = False
        self._refusal: grpc.RpcError | None = None
        self._pauses: list[str] = []
        self._reached: dict[str, float] = {}  # of the timeline, until it is stored
        self._has_told_startup = False
        self._thread = threading.Thread(target=self._deliver, name="reporter", daemon=True)
        self._thread.start()

    # Told by the launcher.

    def lead(self, generation: int, leads: bool) -> None:
        """Say who reports in a new generation."""
        with self._changed:
            self._generation, self._sequence, self._leads = generation, 0, leads
            self._began = None
            if not leads:
                self._status.ClearField("kept_checkpoints")
            # What was refused was of an earlier generation; if the whole attempt is over, the next report tells.
            self._is_over = self._refusal is not None
            self._changed.notify_all()

    def pauses(self, why: str) -> None:
        """Say why training pauses, such as "healed"; told when it has gone on."""
        with self._changed:
            if why and why not in self._pauses:
                self._pauses.append(why)

    def redirect(self, address: str) -> None:
        """Report to another address from now on: the coordinator has come back elsewhere."""
        with self._changed:
            self._order.coordinator_address = address
        COORDINATOR.stub(address)  # breaks calls to where it was

    def stop(self, keep: bool, refusable: int = 0) -> None:
        """Ask training to stop at the next step boundary, with a checkpoint or without.

        Args:
            keep: with a checkpoint.
            refusable: number of this order, if training shall go on when the checkpoint cannot be written.
        """
        with self._changed:
            if 0 < refusable <= self._refused:  # it comes late: other ranks had it, and all have gone on
                return
            self._wish, self._refusable = Wish.KEEP_AND_STOP if keep else Wish.STOP, refusable
            self._changed.notify_all()

    # Told by the engine.

    def entered(self, activity: Activity, step: int) -> None:
        """A sign of life."""
        self._watchdog.beat(activity, step)

    def wish(self) -> Wish:
        """What this rank was asked for; to stop once its reports are of no use."""
        return Wish.STOP if self._is_over else self._wish

    def refusable(self) -> int:
        """Number of the order to stop, if it may be refused."""
        return self._refusable

    def refuse_stop(self, number: int, why: str) -> None:
        """Follow these orders no more, and tell the launcher so."""
        with self._changed:
            self._refused = max(number, self._refused)
            if 0 < self._refusable <= number:  # another order, as to stop in any case, stays
                self._wish, self._refusable = Wish.GO_ON, 0
        if why:
            self._tell_refused(number, why)

    def has_data(self, digest: str) -> None:
        """Keep the name of the data."""
        self.data_digest = digest

    def prepared(self) -> None:
        """The data is read and the model made."""
        self._reach("data_ready_s")

    def _reach(self, stage: str) -> None:
        with self._changed:
            if not self._has_told_startup:
                self._reached.setdefault(stage, time.monotonic())

    def started(self, progress: Progress, hardware: str) -> None:
        """Tell that the next step comes now."""
        self._reach("joined_s")
        with self._changed:
            self._status.hardware_class = hardware
            self._note(progress)
            self._began = self._progress if progress.step and self._leads else None

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Leave points in the spool; on rank 0, waits while it is full."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._leads or len(self._points) < SPOOL_POINTS or self._wish is not Wish.GO_ON or self._is_over
                )
            )
            self._points += points
            self._note(progress)

    def unacknowledged(self) -> list[Point]:
        """Points that may not be stored yet."""
        with self._changed:
            return list(self._points)

    def take_over(self, points: list[Point]) -> None:
        """Hold these points as the unacknowledged ones."""
        with self._changed:
            self._points = list(points)
            self._changed.notify_all()

    def acknowledged_step(self) -> int:
        """The step up to which all points are stored."""
        return self._acknowledged_step

    def acknowledge(self, step: int) -> None:
        """Forget points that are stored."""
        with self._changed:
            self._acknowledged_step = max(step, self._acknowledged_step)
            self._points = [point for point in self._points if point.step > step]

    def healed(self, pause_s: float) -> None:
        """The first step of a generation is done.

        Tell how long training paused for changes of its workers: once, however many there were in that time.
        """
        self._reach("first_step_s")
        self._tell_went_on()
        with self._changed:
            if self._leads and self._pauses and not math.isnan(pause_s):
                self._status.notes.append(f"{' and '.join(self._pauses)} after a pause of {1e3 * pause_s:.0f} ms")
                self._status.heals += "healed" in self._pauses
                self._changed.notify_all()
            self._pauses = []

    def noted(self, words: str) -> None:
        """Tell people something."""
        with self._changed:
            if self._leads and len(self._status.notes) < MOST_NOTES:  # another rank says it for all
                self._status.notes.append(words)
                self._changed.notify_all()

    def checkpointed(self, kept: Sequence[Checkpoint]) -> None:
        """Tell of the checkpoints that there are."""
        told = KeptCheckpoints(checkpoints=[_message_of(checkpoint) for checkpoint in kept])
        with self._changed:
            if self._leads:  # else another rank knows better
                self._status.kept_checkpoints.CopyFrom(told)
                self._changed.notify_all()

    def finished(self, result: Result) -> None:
        """Report the result; returns when all is stored or the attempt is over.

        Raises:
            grpc.RpcError: the coordinator has refused a report.
        """
        if self._leads:
            with self._changed:
                self._status.result.CopyFrom(
                    JobResult(weights_digest=result.weights_digest, final_metrics=result.final_metrics)
                )
            self.flush()

    def flush(self) -> None:
        """On rank 0: return when all is stored, or the attempt is over.

        Raises:
            grpc.RpcError: the coordinator has refused a report.
        """
        with self._changed:
            self._is_flushing = True
            self._changed.notify_all()
            self._changed.wait_for(self._is_done)
            self._is_flushing = False
        if self._refusal is not None:
            raise self._refusal

    def close(self, patience_s: float = 0.0) -> None:
        """End the thread; what is not delivered after `patience_s` seconds is lost."""
        with self._changed:
            self._is_flushing = True
            self._changed.notify_all()
            self._changed.wait_for(self._is_done, patience_s)
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _note(self, progress: Progress) -> None:
        self._progress = JobProgress(step=progress.step, total_steps=progress.total_steps, epoch=progress.epoch)
        self._status.progress.CopyFrom(self._progress)
        self._changed.notify_all()

    def _is_done(self) -> bool:
        return self._is_over or not self._leads or not (self._has_content() or self._is_busy)

    def _has_content(self) -> bool:
        return bool(self._points) or self._status.ByteSize() > 0

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or (self._leads and not self._is_over and self._has_content())
                )
                if not self._points and not self._is_flushing:
                    # Points often follow at once, above all after the first step; then one report tells all.
                    self._changed.wait_for(lambda: self._points or self._is_flushing, WAIT_FOR_POINTS_S)
                if self._is_closed:
                    return
                if not self._leads or self._is_over:
                    continue
                self._is_busy = True
                report, last_step = self._next_report()
            has_points = bool(report.points)
            is_stored = self._send(report)
            with self._changed:
                if is_stored:
                    if report.startup.HasField("first_step_s"):
                        self._reached, self._has_told_startup = {}, True
                    self._points = [point for point in self._points if point.step > last_step]
                    self._acknowledged_step = max(last_step, self._acknowledged_step)
                self._is_busy = False
                self._changed.notify_all()
                # Status gather for a moment, unless someone waits for the end; the first points come at once.
                if has_points:
                    self._changed.wait_for(lambda: self._is_closed or self._is_flushing, REPORT_EVERY_S)

    def _next_report(self) -> tuple[ReportProgressRequest, int]:
        """What there is to say, and the step up to which it says all points."""
        points = self._points[:REPORT_POINTS]
        if len(points) < len(self._points):  # a step goes whole, or its rest would count as stored
            points = [point for point in points if point.step < self._points[REPORT_POINTS].step] or points
        report, self._status = self._status, ReportProgressRequest()
        began, self._began = self._began, None
        if began is not None and began != self._progress and not report.HasField("result"):
            # Steps may have been taken meanwhile. People are told where training went on, then how far it is.
            report.progress.CopyFrom(began)
            self._status.progress.CopyFrom(self._progress)
        else:
            report.progress.CopyFrom(self._progress)
        if len(points) < len(self._points) and report.HasField("result"):
            self._status.result.CopyFrom(report.result)  # the result goes last
            report.ClearField("result")
        report.points.extend(
            MetricPoint(
                name=point.name,
                step=point.step,
                epoch=point.epoch,
                value=point.value,
                kind=METRIC_KIND_TIMING if point.is_timing else METRIC_KIND_RESULT,
            )
            for point in points
        )
        return report, points[-1].step if points else 0

    def _send(self, report: ReportProgressRequest) -> bool:
        """Deliver one report, however long the coordinator is away; False when it is of no use any more."""
        metadata = ((ATTEMPT_TOKEN, self._order.attempt_token),)
        report.job_id, report.attempt, report.generation = self._order.job_id, self._order.attempt, 0
        is_refused = False
        while True:
            with self._changed:
                if self._is_closed or not self._leads:
                    return False
                # It keeps its number in a new generation too, for it may be stored already: heals must not count twice.
                if not report.generation or is_refused:
                    self._sequence += 1
                    report.generation, report.sequence = self._generation, self._sequence
                now = time.monotonic()
                report.startup.CopyFrom(Startup(**{stage: now - since for stage, since in self._reached.items()}))
                stub = COORDINATOR.stub(self._order.coordinator_address)
            try:
                stub.ReportProgress(report, metadata=metadata, timeout=CALL_TIMEOUT_S)
                return True
            except ValueError:  # the channel was closed by `redirect`
                continue
            except grpc.RpcError as error:
                with self._changed:
                    is_refused = error.code() is grpc.StatusCode.PERMISSION_DENIED
                    if is_refused and report.generation < self._generation:
                        continue
                    if is_refused or error.code() in FINAL_CODES:
                        if not is_refused:  # else another attempt took over
                            self._refusal = error
                        self._is_over = True
                        return False
                    self._changed.wait_for(lambda: self._is_closed or not self._leads, RETRY_AFTER_S)


def _message_of(checkpoint: Checkpoint) -> CheckpointMessage:
    message = CheckpointMessage(
        step=checkpoint.step,
        uri=checkpoint.uri,
        weights_digest=checkpoint.weights_digest,
        files=[CheckpointFile(**vars(file)) for file in checkpoint.files],
    )
    message.create_time.FromMicroseconds(int(1e6 * checkpoint.create_time))
    return message
