"""The collector of everything that is told as it stands at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lockstep.server.telemetry.job_collector import collect_jobs
from lockstep.server.telemetry.node_collector import IdleGpus, collect_nodes
from lockstep.server.telemetry.snapshot import Camera


class SnapshotCollector(Collector):
    """Tells of jobs, nodes and GPUs, from one snapshot for each scrape.

    Args:
        camera: takes them.
    """

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._idle_gpus = IdleGpus()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not look before there is a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield all families."""
        snapshot = self._camera.take()
        yield from collect_jobs(snapshot)
        yield from collect_nodes(snapshot, self._idle_gpus)
