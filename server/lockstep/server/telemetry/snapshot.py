"""How things stand at one moment: taken on the event loop, read by the thread that answers a scrape."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lockstep.server.cluster.nodes import GpuUse
from lockstep.server.cluster.view import ClusterView
from lockstep.server.jobs.job import Job, State
from lockstep.server.ledger.ledger import JobLedger
from lockstep.server.telemetry.counters import JobRecord, Telemetry
from lockstep.v1.telemetry_pb2 import NodeTelemetry as NodeTelemetryMessage

if TYPE_CHECKING:
    from lockstep.server.coordinator.parts import Parts

MOST_WAITING = 100
"""Jobs that have never had workers and are told of one by one: those that have waited for longest."""
MOST_ENDED = 500
"""Jobs that have ended and are told of one by one: the newest."""
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class JobView:
    """A job at one moment.

    Attributes:
        held_workers: that it has been given.
        ledger: where their time went.
    """

    job: Job
    record: JobRecord
    held_workers: int
    ledger: JobLedger


@dataclass(frozen=True)
class Snapshot:
    """A server at one moment.

    Attributes:
        jobs: those that are told of one by one.
        states: how many jobs there are in each state.
        queue_depth: jobs that wait for resources.
        oldest_wait_s: how long the first of them has waited; 0 for none.
        cluster: the cluster and its use.
        has_launcher: a launcher is in service.
        watchers: streams that are open.
        node_telemetry: what nodes do, by id; only of those that told of it lately.
        gpu_uses: by node, which worker holds which GPU.
    """

    time: datetime
    jobs: tuple[JobView, ...]
    states: Mapping[State, int]
    queue_depth: int
    oldest_wait_s: float
    cluster: ClusterView
    has_launcher: bool
    watchers: int
    node_telemetry: Mapping[str, NodeTelemetryMessage]
    gpu_uses: Mapping[str, list[GpuUse]]

    @property
    def node_names(self) -> dict[str, str]:
        """A name for each node, by id: no two have the same."""
        return {view.node.node_id: view.node.name or view.node.node_id for view in self.cluster.nodes}

    @property
    def devices(self) -> dict[tuple[str, int, int], str]:
        """The GPUs of each worker, such as "gpu 0", by job, attempt and number."""
        indexes: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
        for uses in self.gpu_uses.values():
            for use in uses:
                indexes[use.job_id, use.attempt, use.number].append(use.index)
        return {worker: f"gpu {','.join(map(str, found))}" for worker, found in indexes.items()}


class Camera:
    """Takes snapshots of a running server.

    Args:
        parts: of the server.
        telemetry: of the server.
        loop: that it runs on.
    """

    def __init__(self, parts: Parts, telemetry: Telemetry, loop: asyncio.AbstractEventLoop) -> None:
        self._parts, self._telemetry, self._loop = parts, telemetry, loop
        self._started_at = time.monotonic()

    def take(self) -> Snapshot:
        """Take one; called from another thread than the event loop's.

        Raises:
            TimeoutError: the event loop does not get to it.
        """
        return asyncio.run_coroutine_threadsafe(self._take(), self._loop).result(_PATIENCE_S)

    async def _take(self) -> Snapshot:
        now = datetime.now(UTC)
        coordinator, telemetry = self._parts.coordinator, self._telemetry
        nodes = self._parts.node_samples
        samples = nodes.all()
        records = (telemetry.records.get(job_id) for job_id in coordinator.queued())
        waits = [record.queued_since for record in records if record is not None and record.queued_since is not None]
        return Snapshot(
            now,
            self._jobs(),
            dict(telemetry.jobs),
            telemetry.queue_depth,
            max((time.monotonic() - since for since in waits), default=0.0),
            coordinator.look_at_cluster(),
            self._parts.dispatcher.has_launcher,
            self._parts.notifier.count(),
            samples,
            {node_id: nodes.gpu_uses(node_id) for node_id, sample in samples.items() if sample.gpus},
        )

    def _jobs(self) -> tuple[JobView, ...]:
        waiting: list[tuple[Job, int, JobRecord]] = []
        at_work: list[tuple[Job, int, JobRecord]] = []
        ended: list[tuple[Job, int, JobRecord]] = []
        live = self._parts.coordinator.live_jobs()
        ledgers = self._parts.ledgers.newest()
        for job_id, record in self._telemetry.records.items():  # in the order of submits
            job, held_workers = live.get(job_id, (record.ended, 0))
            if job is None:
                continue
            if job.state.has_ended:
                ended.append((job, held_workers, record))
            elif job.attempt:
                at_work.append((job, held_workers, record))
            elif len(waiting) < MOST_WAITING:
                waiting.append((job, held_workers, record))
        return tuple(
            JobView(
                job,
                JobRecord(dict(record.metrics), record.checkpoint_time, record.queued_since),
                held_workers,
                self._ledger_of(job, ledgers),
            )
            for job, held_workers, record in (*ended[-MOST_ENDED:], *at_work, *waiting)
        )

    def _ledger_of(self, job: Job, ledgers: Mapping[str, JobLedger]) -> JobLedger:
        """A copy of what changes; an empty one while less is known than was told, for counters must not fall."""
        ledger = ledgers.get(job.job_id)
        if ledger is None or (job.state.has_workers and not ledger.is_up_to_date(time.monotonic() - self._started_at)):
            return JobLedger()
        # The lists in an account are replaced and never written to.
        ranks = {rank: copy(account) for rank, account in ledger.ranks.items()}
        return JobLedger(ranks, {}, ledger.flops_per_step, ledger.last_step_at)
