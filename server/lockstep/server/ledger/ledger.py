"""Where the time of a job's workers went: their accounts, put together by rank."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockstep.contract.facts import PHASES, STEP_BOUNDS_S
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest
from lockstep.v1.ledger_pb2 import PhaseSeconds

CAUSES = {"start_up": "start_up", "checkpoint": "checkpoint", "healing": "healing", "idle": "idle"}
"""What the time of a worker was spent for, by phase; every other phase is productive."""
SILENT_S = 30.0
"""How long a worker that is told of may have said nothing."""
LEAST_LAG_RATIO = 0.05
"""By how much less of its time than the others a rank must wait to count as the straggler."""
LEAST_STEPS = 20
LEAST_STEPPING_S = 5.0
"""How many steps a rank must have taken, and for how long, before it is compared: the first ones are no measure."""

_WAIT = PHASES.index("exchange_wait")
_OF_A_STEP = [
    PHASES.index(phase)
    for phase in ("data", "host_to_device", "forward", "backward", "exchange", "exchange_wait", "optimizer")
]


@dataclass
class RankAccount:
    """What the workers that had a rank have done in it.

    Attributes:
        seconds: time by phase, in the order of PHASES, without what is under way; it only grows.
        step_counts: of step durations, in the order of STEP_BOUNDS_S; the last one counts what took longer.
        node_id: of the worker that had it last.
        attempt: the attempt of that worker.
        number: its number in the attempt.
        account_id: of its part in the attempt.
        heard_at: when it was heard of last, as time.time() tells.
        is_there: it has not said that it has ended.
    """

    seconds: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))
    steps: int = 0
    examples: int = 0
    step_counts: list[int] = field(default_factory=lambda: [0] * (len(STEP_BOUNDS_S) + 1))
    step_seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    node_id: str = ""
    attempt: int = 0
    number: int = 0
    account_id: int = 0
    heard_at: float = 0.0
    is_there: bool = False


@dataclass
class WorkerAccount:
    """What a worker has told last: the part of its rank's account that is known already.

    Attributes:
        seconds: time by phase that is settled.
        under_way: time by phase that is not: of a step, or an exchange, that has not ended.
    """

    sequence: int = 0
    rank: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))
    under_way: list[float] = field(default_factory=lambda: [0.0] * len(PHASES))
    steps: int = 0
    examples: int = 0
    step_counts: list[int] = field(default_factory=lambda: [0] * (len(STEP_BOUNDS_S) + 1))
    step_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass
class JobLedger:
    """The ledger of one job over all attempts.

    Attributes:
        ranks: accounts by rank.
        workers: by attempt, number and account, those of the newest attempts.
        flops_per_step: on all ranks; 0 while they are not counted.
        last_step_at: when rank 0 had taken a step last, as time.time() tells; 0 if it never has.
        heard: ranks that were heard of since this was read from the store; not stored itself.
    """

    ranks: dict[int, RankAccount] = field(default_factory=dict)
    workers: dict[tuple[int, int, int], WorkerAccount] = field(default_factory=dict)
    flops_per_step: float = 0.0
    last_step_at: float = 0.0
    heard: set[int] = field(default_factory=set, compare=False)

    def add(self, told: ReportLedgerRequest, now: float) -> bool:
        """Add what a worker has done since its report before to the account of its rank; False if that is old status.

        What is settled is added for good. What is under way is only noted, and counts for the rank that the worker has
        now: it may turn out to have been healing, when ranks have moved up already.
        """
        worker = self._worker_of(told)
        if worker is None or told.sequence <= worker.sequence:
            return False
        account = self.ranks.setdefault(told.rank, RankAccount())
        self.heard.add(told.rank)
        if told.rank == 0 and told.steps > worker.steps:
            self.last_step_at = now
        under_way = [0.0] * len(PHASES) if told.is_last else _seconds_of(told.under_way)
        settled = [all_ - part for all_, part in zip(_seconds_of(told.seconds), under_way, strict=True)]
        growth = _growth(settled, worker.seconds)
        account.seconds = [total + more for total, more in zip(account.seconds, growth, strict=True)]
        account.step_counts = _grown(account.step_counts, told.step_duration_counts, worker.step_counts)
        account.steps += max(0, told.steps - worker.steps)
        account.examples += max(0, told.examples - worker.examples)
        account.step_seconds += max(0.0, told.step_duration_sum_s - worker.step_seconds)
        account.cpu_seconds += max(0.0, told.cpu_seconds - worker.cpu_seconds)
        if not account.is_there or (told.attempt, told.number) >= (account.attempt, account.number):
            # Else these are the last words of a worker whose rank another one has by now.
            account.memory_bytes, account.gpu_memory_bytes = told.memory_bytes, told.gpu_memory_bytes
            account.node_id, account.attempt, account.number = told.node_id, told.attempt, told.number
            account.account_id = told.account_id
            account.heard_at, account.is_there = now, not told.is_last
        if worker.rank != told.rank and worker.sequence:
            before = self.ranks.get(worker.rank)
            if before is not None and (before.attempt, before.number) == (told.attempt, told.number):
                before.is_there = False
        worker.sequence, worker.rank, worker.under_way = told.sequence, told.rank, under_way
        worker.seconds = settled
        worker.steps, worker.examples, worker.step_counts = told.steps, told.examples, list(told.step_duration_counts)
        worker.step_seconds, worker.cpu_seconds = told.step_duration_sum_s, told.cpu_seconds
        self.flops_per_step = told.flops_per_step or self.flops_per_step
        return True

    def _worker_of(self, told: ReportLedgerRequest) -> WorkerAccount | None:
        """The account of a worker that is told of; None when nobody remembers what is known of it."""
        key = (told.attempt, told.number, told.account_id)
        if key not in self.workers:
            newest = max((attempt for attempt, _, _ in self.workers), default=0)
            if told.attempt < newest - 1:
                return None
            if told.attempt > newest:
                self.workers = {known: worker for known, worker in self.workers.items() if known[0] >= told.attempt - 1}
            self.workers[key] = WorkerAccount()
        return self.workers[key]

    def seconds_of(self, rank: int) -> list[float]:
        """Time of a rank by phase, with what the worker that has it now is in the middle of."""
        account = self.ranks[rank]
        holder = self.workers.get((account.attempt, account.number, account.account_id))
        if holder is None or holder.rank != rank:
            return list(account.seconds)
        return [settled + part for settled, part in zip(account.seconds, holder.under_way, strict=True)]

    def straggler(self) -> tuple[int, float] | None:
        """The rank that waits least for the others, and by how much less of its steps' time; see ledger.proto.

        Only time that is settled counts: a wait that is under way may turn out to have been for a rank that was lost.
        A rank that has taken less than half as many steps as another one is left out: it was there at another time.
        Whoever has waited longer than the others by the clock is never named, as people would see in the table.
        """
        steps = max((account.steps for account in self.ranks.values()), default=0)
        waits = {}
        for rank, account in self.ranks.items():
            stepping = sum(account.seconds[phase] for phase in _OF_A_STEP)
            if account.steps >= max(LEAST_STEPS, steps / 2) and stepping >= LEAST_STEPPING_S:
                waits[rank] = account.seconds[_WAIT] / stepping
        if len(waits) < 2:
            return None
        slowest = min(waits, key=lambda rank: waits[rank])
        others = [rank for rank in waits if rank != slowest]
        lag = statistics.median(waits[rank] for rank in others) - waits[slowest]
        shown = statistics.median(self.seconds_of(rank)[_WAIT] for rank in others)
        is_shown = self.seconds_of(slowest)[_WAIT] < shown
        return (slowest, lag) if lag > LEAST_LAG_RATIO and is_shown else None

    def rank_of(self, attempt: int, number: int) -> int | None:
        """Return the rank that a worker had when it was heard of last; None while it has said nothing."""
        told = [worker.rank for key, worker in self.workers.items() if key[:2] == (attempt, number)]
        return told[-1] if told else None

    def is_up_to_date(self, running_s: float) -> bool:
        """Whether every worker that was there has been heard since the server started, or never will be.

        Until then some accounts are those that were stored before a crash, and older than what was told of them.

        Args:
            running_s: how long the server has been running.
        """
        if running_s > SILENT_S:
            return True
        return all(rank in self.heard or not account.is_there for rank, account in self.ranks.items())

    def by_cause(self) -> dict[str, float]:
        """Seconds of all workers by what they were spent for; they only grow."""
        seconds = dict.fromkeys(("productive", *CAUSES.values()), 0.0)
        for account in self.ranks.values():
            for phase, value in zip(PHASES, account.seconds, strict=True):
                seconds[CAUSES.get(phase, "productive")] += value
        return seconds

    def to_json(self) -> dict[str, Any]:
        """The ledger as JSON can say it."""
        return {
            "flops_per_step": self.flops_per_step,
            "last_step_at": self.last_step_at,
            # Lists in accounts are replaced and never written to.
            "ranks": {str(rank): dict(vars(account)) for rank, account in self.ranks.items()},
            "workers": [[*key, dict(vars(account))] for key, account in self.workers.items()],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> JobLedger:
        """The reverse of `to_json`."""
        return cls(
            ranks={int(rank): RankAccount(**_without_less(account)) for rank, account in said["ranks"].items()},
            workers={(key[0], key[1], key[2]): WorkerAccount(**account) for *key, account in said["workers"]},
            flops_per_step=said["flops_per_step"],
            last_step_at=said["last_step_at"],
        )


def _without_less(account: Mapping[str, Any]) -> dict[str, Any]:
    """An account as it is now, from one of an earlier version, which could hold less than nothing of a phase."""
    kept = {name: value for name, value in account.items() if name != "most_seconds"}
    return kept | {"seconds": [max(0.0, seconds) for seconds in account["seconds"]]}


def _seconds_of(told: PhaseSeconds) -> list[float]:
    return [getattr(told, f"{phase}_s") for phase in PHASES]


def _growth(told: list[float], known: list[float]) -> list[float]:
    """What each phase has gained: never less than nothing, and together no more than the account as a whole.

    What is settled grows in every phase. A worker of an earlier version, which does not tell what is under way, moves
    time from one phase to another one.
    """
    gains = [max(0.0, new - old) for new, old in zip(told, known, strict=True)]
    gained, passed = sum(gains), max(0.0, sum(told) - sum(known))
    return gains if gained <= passed else [gain * passed / gained for gain in gains]


def _grown(sums: list[Any], told: Iterable[Any], known: list[Any]) -> list[Any]:
    return [total + max(0, new - old) for total, new, old in zip(sums, told, known, strict=True)]
