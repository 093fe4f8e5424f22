"""Tells the coordinator where a worker's time goes: now and then, and at the end."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence

import grpc
import torch

from lockstep.contract.facts import Phase
from lockstep.contract.metadata import ATTEMPT_TOKEN
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest, StartGang
from lockstep.v1.ledger_pb2 import PhaseSeconds
from lockstep.workers import awake_clock
from lockstep.workers.actor.reset import memory_bytes
from lockstep.workers.connection import COORDINATOR
from lockstep.workers.engine import Ledger

EVERY_S = 5.0
CALL_TIMEOUT_S = 5.0
RETRY_AFTER_S = 0.2


class LedgerReports:
    """Reports of one part in an attempt. Each one is whole, so that one which is lost does no harm.

    Args:
        order: the attempt, with the coordinator's address as it is now.
        number: of the worker in the attempt.
        node_id: Ray's id of its node.
        ledger: what is reported.
        rank: tells the worker's rank; None before it has one, when its number stands for it.
    """

    def __init__(
        self, order: StartGang, number: int, node_id: str, ledger: Ledger, rank: Callable[[], int | None]
    ) -> None:
        self._order, self._number, self._node_id = order, number, node_id
        self._ledger, self._rank = ledger, rank
        self._sequence = 0
        self._account_id = secrets.randbits(32)
        self._cpu_before = time.process_time()
        self._uses_gpu = order.spec.resources.gpus_per_worker > 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to report; returns at once."""
        if self._uses_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()

    def close(self, patience_s: float) -> None:
        """Report the end, unless that takes longer than `patience_s` seconds."""
        self._closing.set()
        if self._thread.ident is not None:  # else it never came to the start
            self._thread.join()
        deadline = awake_clock.now() + patience_s
        while not self._report(deadline - awake_clock.now(), is_last=True):
            if awake_clock.now() + RETRY_AFTER_S > deadline:
                return
            time.sleep(RETRY_AFTER_S)

    def _run(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._report(CALL_TIMEOUT_S)

    def _report(self, timeout_s: float, *, is_last: bool = False) -> bool:
        """Send one report; False when it may be of use to send it again."""
        rank = self._rank()
        self._sequence += 1
        account = self._ledger.account()
        request = ReportLedgerRequest(
            job_id=self._order.job_id,
            attempt=self._order.attempt,
            number=self._number,
            rank=self._number if rank is None else rank,
            account_id=self._account_id,
            node_id=self._node_id,
            sequence=self._sequence,
            seconds=_phase_seconds(account.seconds),
            under_way=_phase_seconds(account.under_way),
            steps=account.steps,
            examples=account.examples,
            step_duration_counts=account.step_counts,
            step_duration_sum_s=account.step_seconds,
            flops_per_step=account.flops_per_step,
            cpu_seconds=time.process_time() - self._cpu_before,
            memory_bytes=memory_bytes(),
            gpu_memory_bytes=torch.cuda.max_memory_allocated() if self._uses_gpu else 0,
            is_last=is_last,
        )
        metadata = ((ATTEMPT_TOKEN, self._order.attempt_token),)
        try:
            stub = COORDINATOR.stub(self._order.coordinator_address)
            stub.ReportLedger(request, metadata=metadata, timeout=timeout_s)
        except ValueError:  # the coordinator has just moved
            return False
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return True


def _phase_seconds(seconds: Sequence[float]) -> PhaseSeconds:
    return PhaseSeconds(**{f"{phase.name.lower()}_s": seconds[phase] for phase in Phase})
