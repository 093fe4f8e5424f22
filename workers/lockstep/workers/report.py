"""How rank 0 tells the coordinator of points, progress and the result.

Training only leaves a note in a bounded spool; a thread delivers. While a call is under way notes gather, and go
together in the next one.
"""

import threading
import time

import grpc

from lockstep.v1.internal_service_pb2 import ReportProgressRequest, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JobProgress, JobResult
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, METRIC_KIND_TIMING, MetricPoint
from lockstep.workers.engine import Listener, Point, Progress, Result

SPOOL_POINTS = 50_000
"""Points that wait for delivery before training is held up."""
REPORT_EVERY_S = 0.1
CALL_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.5
FINAL_CODES = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Answers that the same report would get again."""


class StopFlag(Listener):
    """The listener of a rank that reports nothing: it only passes on that someone asked to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def stop(self) -> None:
        """Ask training to stop at the next step boundary."""
        self._asked.set()

    def wants_stop(self) -> bool:
        """Whether someone asked."""
        return self._asked.is_set()


class Reporter(StopFlag):
    """The listener of rank 0.

    Args:
        order: the job, its attempt, where to report and the token that proves the right to.
    """

    def __init__(self, order: StartGang) -> None:
        super().__init__()
        self._order = order
        self._changed = threading.Condition()
        self._next = ReportProgressRequest()
        self._is_pending = False
        self._is_over = False
        self._refusal: grpc.RpcError | None = None
        self._channel = grpc.insecure_channel(order.coordinator_address)
        self._stub = InternalServiceStub(self._channel)
        self._sequence = 0
        self._thread = threading.Thread(target=self._deliver, name="reporter", daemon=True)
        self._thread.start()

    def started(self, progress: Progress, hardware: str) -> None:
        """Tell that the first step comes next."""
        with self._changed:
            self._next.hardware_class = hardware
            self._note(progress)

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Leave points in the spool; waits while it is full."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._next.points) < SPOOL_POINTS or self.wants_stop())
            self._next.points.extend(
                MetricPoint(
                    name=point.name,
                    step=point.step,
                    epoch=point.epoch,
                    value=point.value,
                    kind=METRIC_KIND_TIMING if point.is_timing else METRIC_KIND_RESULT,
                )
                for point in points
            )
            self._note(progress)

    def finish(self, result: Result) -> None:
        """Report the result, and return when all has been acknowledged or the attempt is over."""
        with self._changed:
            self._next.result.CopyFrom(
                JobResult(weights_digest=result.weights_digest, final_metrics=result.final_metrics)
            )
            self._is_pending = True
            self._changed.notify_all()
        self.close()

    def close(self) -> None:
        """Deliver what is left, then end.

        Raises:
            grpc.RpcError: the coordinator has refused a report.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or not self._is_pending)
        self._channel.close()
        if self._refusal is not None:
            raise self._refusal

    def _note(self, progress: Progress) -> None:
        self._next.progress.CopyFrom(
            JobProgress(step=progress.step, total_steps=progress.total_steps, epoch=progress.epoch)
        )
        self._is_pending = True
        self._changed.notify_all()

    def _deliver(self) -> None:
        while not self._is_over:
            with self._changed:
                self._changed.wait_for(lambda: self._is_pending and self._has_content())
                report, self._next = self._next, ReportProgressRequest()
                self._changed.notify_all()
            self._sequence += 1
            report.job_id, report.attempt, report.generation = self._order.job_id, self._order.attempt, 1
            report.sequence = self._sequence
            self._send(report)
            with self._changed:
                self._is_pending = self._has_content() and not self._is_over
                self._changed.notify_all()
            if not report.HasField("result"):
                time.sleep(REPORT_EVERY_S)

    def _has_content(self) -> bool:
        return self._next.ByteSize() > 0

    def _send(self, report: ReportProgressRequest) -> None:
        """Deliver one report, however long the coordinator is away."""
        metadata = (("lockstep-attempt-token", self._order.attempt_token),)
        while True:
            try:
                self._stub.ReportProgress(report, metadata=metadata, timeout=CALL_TIMEOUT_S)
                return
            except grpc.RpcError as error:
                if error.code() in FINAL_CODES:
                    if error.code() is not grpc.StatusCode.PERMISSION_DENIED:  # that one: another attempt took over
                        self._refusal = error
                    self._is_over = True
                    self.stop()
                    return
                time.sleep(RETRY_AFTER_S)
