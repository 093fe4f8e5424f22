"""The parts of the coordinator, put together. A service is given those that it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lockstep.server.cluster.nodes import NodeSamples
from lockstep.server.coordinator.coordinator import Coordinator
from lockstep.server.coordinator.dispatcher import Cluster, Dispatcher
from lockstep.server.coordinator.listener import JobListener
from lockstep.server.coordinator.live_jobs import LiveJobs
from lockstep.server.coordinator.orders import Orders
from lockstep.server.coordinator.shown_jobs import ShownJobs
from lockstep.server.ledger.job_ledgers import JobLedgers
from lockstep.server.process.file_pool import FilePool
from lockstep.server.spec.rules import Site
from lockstep.server.store import Store
from lockstep.server.watching.notifier import Notifier


@dataclass(frozen=True)
class Parts:
    """What a server is made of, behind its services.

    Attributes:
        coordinator: what users ask of jobs, and what workers report.
        store: what is known of all jobs.
        files: threads for the files that users name.
        notifier: wakes who watches a job.
        ledgers: where the time of workers went.
        dispatcher: the launcher's side.
        shown: jobs as they are shown.
        node_samples: what the nodes do.
    """

    coordinator: Coordinator
    store: Store
    files: FilePool
    notifier: Notifier
    ledgers: JobLedgers
    dispatcher: Dispatcher
    shown: ShownJobs
    node_samples: NodeSamples


def assemble(
    store: Store,
    *,
    site: Site,
    cluster: Cluster,
    listener: JobListener,
    orders: Orders,
    keep_days: float | None = None,
    job_forgotten: Callable[[str], Awaitable[None]],
) -> Parts:
    """Put the parts together; nothing is read yet.

    Args:
        store: of the jobs.
        site: what the rules of specs may know.
        cluster: what is known of it before it speaks.
        listener: told of everything that happens to jobs.
        orders: writes to the launcher.
        keep_days: how long jobs are kept after their end; None for ever.
        job_forgotten: told of each that was deleted.
    """
    files, notifier, ledgers = FilePool(), Notifier(), JobLedgers(store.ledgers)
    live = LiveJobs(store.jobs, files, notifier, listener, orders)
    dispatcher = Dispatcher(live, orders, store.jobs, store.cluster.epoch, cluster)
    coordinator = Coordinator(
        store, live, dispatcher, ledgers, files, notifier, site, listener, orders, keep_days, job_forgotten
    )
    nodes = NodeSamples(lambda: dispatcher.nodes_seen, lambda: dispatcher.processes)
    return Parts(coordinator, store, files, notifier, ledgers, dispatcher, ShownJobs(live, dispatcher), nodes)
