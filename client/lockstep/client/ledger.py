"""Where the time of a job's workers went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lockstep.v1 import ledger_pb2, metrics_service_pb2

if TYPE_CHECKING:
    from lockstep.client.client import Client

PHASES = tuple(field.name.removesuffix("_s") for field in ledger_pb2.PhaseSeconds.DESCRIPTOR.fields)
"""Names of the phases: start_up, data, ..., idle; ledger.proto says what belongs where."""


@dataclass(frozen=True, slots=True)
class RankLedger:
    """The account of one rank over all attempts.

    Attributes:
        rank: its number.
        seconds: by phase, in the order of PHASES; together the time that the rank was there.
        node: name or id of the node that it was on last.
        steps: that it has taken, those that were taken anew after a restart among them.
        memory_bytes: of its process when it was heard of last.
        gpu_memory_bytes: most that its tensors took on its GPU; 0 without one.
        cpu_seconds: time that its processes were busy on CPUs.
    """

    rank: int
    seconds: Mapping[str, float]
    node: str
    steps: int
    memory_bytes: int
    gpu_memory_bytes: int
    cpu_seconds: float

    @classmethod
    def from_proto(cls, account: ledger_pb2.RankLedger) -> Self:
        seconds = {phase: getattr(account.seconds, f"{phase}_s") for phase in PHASES}
        node = account.node_name or account.node_id
        return cls(
            account.rank,
            seconds,
            node,
            account.steps,
            account.memory_bytes,
            account.gpu_memory_bytes,
            account.cpu_seconds,
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of a job.

    Attributes:
        ranks: by rank; empty while nothing is known.
        straggler: the rank that waits least, and for which the others wait; None while nobody waits for long.
        straggler_lag_ratio: by how much less of the time of its steps it waits than the median of the others, 0 to 1.
        flops_per_step: of the matrix products and convolutions of one step on all ranks; 0 while they are not counted.
    """

    ranks: tuple[RankLedger, ...]
    straggler: int | None
    straggler_lag_ratio: float
    flops_per_step: float

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of all ranks together by phase."""
        return {phase: sum(rank.seconds[phase] for rank in self.ranks) for phase in PHASES}

    @classmethod
    def from_proto(cls, ledger: ledger_pb2.Ledger) -> Self:
        straggler = ledger.straggler_rank if ledger.HasField("straggler_rank") else None
        ranks = tuple(map(RankLedger.from_proto, ledger.ranks))
        return cls(ranks, straggler, ledger.straggler_lag_ratio, ledger.flops_per_step)


def get_ledger(client: Client, job_id: str) -> Ledger:
    """Read the ledger; see `Job.ledger`."""
    request = metrics_service_pb2.GetLedgerRequest(job_id=job_id)
    return Ledger.from_proto(client._connection.call(client._metrics.GetLedger, request))
