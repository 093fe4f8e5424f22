"""What Prometheus is told: jobs by state, the queue, submits, heals and restarts, and every RPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lockstep.server.job import State
from lockstep.server.spec import ENGINE_VERSION

_RPC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def package_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("lockstep-train")
    except PackageNotFoundError:
        return "unknown"


class Telemetry(Collector):
    """All metrics of one server, in a registry of its own. The event loop writes, the HTTP thread reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = 0
        self._jobs = dict.fromkeys(State, 0)
        self._submits = Counter("lockstep_jobs_submitted", "Jobs stored by this process.", registry=self.registry)
        self._heals = Counter(
            "lockstep_job_heals", "How often training went on without a worker that was lost.", registry=self.registry
        )
        self._restarts = Counter(
            "lockstep_job_restarts", "Attempts that were lost with all of their workers.", registry=self.registry
        )
        labels = ["grpc_service", "grpc_method"]
        self._started = Counter("grpc_server_started", "RPCs that came in.", labels, registry=self.registry)
        self._handled = Counter(
            "grpc_server_handled", "RPCs that have ended, by status.", [*labels, "grpc_code"], registry=self.registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from an RPC's arrival to its end.",
            labels,
            buckets=_RPC_BUCKETS,
            registry=self.registry,
        )
        info = Gauge("lockstep_build_info", "Always 1.", ["version", "engine_version"], registry=self.registry)
        info.labels(package_version(), ENGINE_VERSION).set(1)
        self.registry.register(self)

    def set_counts(self, counts: Mapping[State, int]) -> None:
        """Set how many jobs stand in each state."""
        self._jobs = {state: counts.get(state, 0) for state in State}

    def job_submitted(self) -> None:
        self._submits.inc()
        self._jobs[State.QUEUED] += 1

    def job_moved(self, before: State, after: State) -> None:
        self._jobs[before] -= 1
        self._jobs[after] += 1

    def job_recovered(self, *, heals: int, restarts: int) -> None:
        self._heals.inc(heals)
        self._restarts.inc(restarts)

    def rpc_started(self, service: str, method: str) -> None:
        self._started.labels(service, method).inc()

    def rpc_ended(self, service: str, method: str, code: str, seconds: float) -> None:
        self._handled.labels(service, method, code).inc()
        self._seconds.labels(service, method).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """Write what changes too often, or is too simple, for a metric object."""
        jobs = GaugeMetricFamily("lockstep_jobs", "Jobs in the store, by state.", labels=["state"])
        for state, count in list(self._jobs.items()):
            jobs.add_metric([state.value], count)
        yield jobs
        yield GaugeMetricFamily("lockstep_queue_depth", "Jobs that wait for resources.", value=self.queue_depth)
