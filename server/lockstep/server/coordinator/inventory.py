"""What a new launcher finds of gangs is set against what the jobs say, so that both agree again.

It is the one path for a launcher that was restarted and for a server that was: workers go on without either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from lockstep.server.coordinator.gangs import Entry, Gang
from lockstep.server.coordinator.live_jobs import LiveJobs
from lockstep.server.coordinator.orders import Orders
from lockstep.server.jobs.job import Stop, WorkersChanged, WorkersForgotten
from lockstep.server.jobs.lifecycle import stop_under_way
from lockstep.server.scheduling.scheduler import amount_of_worker
from lockstep.server.store import JobStore
from lockstep.v1.internal_service_pb2 import GangChanged

_AT_ONCE = Stop(0.0)

log = structlog.get_logger(__name__)


async def take_over(
    told: Sequence[GangChanged],
    as_change: Callable[[GangChanged], WorkersChanged],
    live: LiveJobs,
    orders: Orders,
    stored: JobStore,
    cause: str,
) -> None:
    """Adopt the gangs that are wanted, stop the others, and let jobs whose workers are gone go on without them.

    Args:
        told: every gang that there is.
        as_change: makes of what is told of a gang what changes its job.
        live: the jobs.
        orders: where orders go; the launcher that has told is in service.
        stored: knows jobs that have ended.
        cause: what to say to jobs whose workers are gone.
    """
    found = {(gang.job_id, gang.attempt): gang for gang in told}
    for job_id, attempt in [key for key in live.holding if key not in found]:
        entry = live.entries.get(job_id)
        if entry is None or entry.gang is None or entry.gang.attempt != attempt:
            live.release(job_id, attempt)
    for entry in list(live.entries.values()):
        gang = found.get((entry.job.job_id, entry.job.attempt))
        if gang is not None and (entry.gang is not None or entry.job.state.has_workers):
            del found[gang.job_id, gang.attempt]
            await _adopt(entry, gang, as_change(gang), live, orders)
        elif entry.gang is not None or entry.job.state.has_workers:
            await _forget(entry, live, cause)
    for gang in found.values():
        await _send_away(gang, live, orders, stored)


async def _adopt(entry: Entry, told: GangChanged, change: WorkersChanged, live: LiveJobs, orders: Orders) -> None:
    job_id, attempt = told.job_id, told.attempt
    async with entry.lock:
        each = amount_of_worker(entry.job.spec.resources)
        refused = {*told.refused_node_ids, *(() if entry.gang is None else entry.gang.refused)}
        live.set_gang(entry, Gang(attempt, tuple(told.node_ids), each, told.revision, refused=refused))
        await live.apply(entry, change)
        stop = _AT_ONCE if entry.job.state.has_ended else stop_under_way(entry.job)
        if stop is not None:
            orders.stop(job_id, attempt, stop)
    log.info("gang taken over", job_id=job_id, attempt=attempt, workers=len(told.node_ids))


async def _forget(entry: Entry, live: LiveJobs, cause: str) -> None:
    async with entry.lock:
        if entry.job.state.has_workers:
            await live.apply(entry, WorkersForgotten(cause))
        live.set_gang(entry, None)
        live.drop_if_over(entry)


async def _send_away(told: GangChanged, live: LiveJobs, orders: Orders, stored: JobStore) -> None:
    """Stop a gang that no job wants; what it holds is not given out before it is gone."""
    job = await stored.get_job(told.job_id)
    if job is not None:
        each = amount_of_worker(job.spec.resources)
        live.holding[told.job_id, told.attempt] = Gang(told.attempt, tuple(told.node_ids), each)
    orders.stop(told.job_id, told.attempt, _AT_ONCE)
    log.warning("a gang that no job wants is stopped", job_id=told.job_id, attempt=told.attempt)
