"""A real Prometheus with our rules scrapes a server that trains, and a page with the series of a GPU cluster.

Each query of each board, and each rule, is seen to return something on the page; those that need no GPU and no fault
also on the server.
"""

import contextlib
import math
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lockstep.client import Client, NotFound
from tests.integration.conftest import Server, digits, quick, wait_for_state
from tests.support.boards import Query, metrics, queries, rules, variables
from tests.support.gpu_cluster import JOB, page_of_a_gpu_cluster
from tests.support.prometheus import Prometheus, Sample, promtool

NEEDS = {
    "fleet: Held and idle: which, and by whom A": "a worker that is idle",
    "fleet: Alerts A": "a fault",
    "job: mark Healed": "a worker that is lost",
    "job: mark Restarted": "workers that are lost",
    "job: Computing speed B": "a GPU whose peak is known",
    "gpu: XID errors A": "a broken GPU",
    "gpu: Throttled A": "a hot GPU",
    "gpu: Power A": "a GPU",
    "gpu: Power B": "a GPU",
    "gpu: Temperature A": "a GPU",
    "gpu: Clock, of the highest A": "a GPU",
    "gpu: SM occupancy and tensor cores A": "a GPU of Hopper or later",
    "gpu: SM occupancy and tensor cores B": "a GPU of Hopper or later",
    "gpu: Memory bandwidth A": "a GPU",
    "gpu: Energy per thousand samples A": "a GPU",
    "job:lockstep_flops_utilization:ratio_rate5m": "a GPU whose peak is known",
    "gpu:lockstep_xid_error_age_seconds:min15m": "a broken GPU",
    "device:lockstep_unhealthy:info": "a broken GPU or a silent node",
}
"""What returns nothing on a healthy cluster without GPUs, and what it needs to return something."""
ON_GPUS_ONLY = {name for name in metrics() if name.startswith("lockstep_gpu_")} | {"lockstep_worker_gpu_memory_bytes"}
RECORDED = sorted({rule["record"] for rule in rules() if "record" in rule})
WRONG_ON_THE_PAGE = {
    "LockstepDiskFull",
    "LockstepGpuThrottled",
    "LockstepGpuXid",
    "LockstepNodeSilent",
    "LockstepNonFiniteLoss",
    "LockstepQueueWait",
    "LockstepRpcErrors",
    "LockstepStraggler",
}
"""What is seen there at once; that a GPU is held and idle takes minutes."""


@pytest.fixture(scope="module")
def gpu_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the page."""
    with page_of_a_gpu_cluster() as page, Prometheus(tmp_path_factory.mktemp("prometheus"), page) as prometheus:
        yield prometheus


class Live:
    """A server that trains, and the Prometheus that scrapes it."""

    def __init__(self, prometheus: Prometheus, page: str, job_id: str) -> None:
        self.prometheus, self.page, self.job_id = prometheus, page, job_id


@pytest.fixture(scope="module")
def live(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One job has ended, one call was wrong, and one job trains, validates and writes checkpoints."""
    address = re.sub(r"^https?://", "", server.addresses()["http_address"])
    spec = digits(max_steps=10_000_000) | {"recovery": {"checkpoint_every_steps": 20}}
    del spec["training"]["max_epochs"]
    with Prometheus(tmp_path_factory.mktemp("prometheus"), address) as prometheus, server.client() as client:
        prometheus.wait_for("lockstep_build_info")
        with contextlib.suppress(NotFound):
            client.get_job("job-zzzzzz")
        client.submit_job(quick()).wait()
        with training(client, spec) as job_id:
            yield Live(prometheus, f"http://{address}/metrics", job_id)


@contextlib.contextmanager
def training(client: Client, spec: dict[str, Any]) -> Iterator[str]:
    """A job that trains until the end of the block."""
    job = client.submit_job(spec)
    try:
        yield wait_for_state(job, "RUNNING").job_id
    finally:
        job.cancel()
        wait_for_state(job, "CANCELLED")


def tells_something(prometheus: Prometheus, expr: str) -> Callable[[], bool]:
    """Whether a query returns at least one number."""

    def numbers() -> list[Sample]:
        return [sample for sample in prometheus.query(expr) if not math.isnan(float(sample["value"][1]))]

    return lambda: bool(numbers())


@pytest.mark.parametrize("query", [*queries(), *variables()], ids=str)
def test_every_query_of_a_board_returns_something_on_a_gpu_cluster(gpu_cluster: Prometheus, query: Query) -> None:
    expr = query.with_values(JOB if query.board == "job" else ".*")
    gpu_cluster.wait_until(tells_something(gpu_cluster, expr), expr)


@pytest.mark.parametrize("name", RECORDED)
def test_every_recording_rule_returns_something_on_a_gpu_cluster(gpu_cluster: Prometheus, name: str) -> None:
    gpu_cluster.wait_until(tells_something(gpu_cluster, name), name)


def test_alerts_see_what_is_wrong_on_a_gpu_cluster(gpu_cluster: Prometheus) -> None:
    def seen() -> set[str]:
        return {rule["name"] for rule in gpu_cluster.rules() if rule["type"] == "alerting" and rule["alerts"]}

    gpu_cluster.wait_until(lambda: seen() >= WRONG_ON_THE_PAGE)
    assert seen() <= WRONG_ON_THE_PAGE | {"LockstepRestartLoop"}  # after half a minute


def test_the_straggler_is_the_rank_that_waits_least(gpu_cluster: Prometheus) -> None:
    (straggler,) = gpu_cluster.wait_for("rank:lockstep_straggler_lag:ratio_rate1m > 0.1")
    assert straggler["metric"]["rank"] == "1"


def test_a_gpu_is_held_with_its_job_or_free(gpu_cluster: Prometheus) -> None:
    gpu_cluster.wait_for("device:lockstep_utilization:ratio")
    held = gpu_cluster.query('device:lockstep_utilization:ratio{job_id!=""}')
    free = gpu_cluster.query('device:lockstep_utilization:ratio{job_id=""}')
    assert {sample["metric"]["job_name"] for sample in held} == {"resnet"}
    assert sorted(sample["metric"]["device"] for sample in held) == ["gpu 0", "gpu 0", "gpu 1"]
    assert [sample["metric"]["uuid"] for sample in free] == ["GPU-3"]


def test_the_title_of_a_job_has_its_name_and_its_id(gpu_cluster: Prometheus) -> None:
    (choice,) = [query for query in variables() if str(query) == "job: variable job"]
    for sample in gpu_cluster.wait_for(choice.with_values()):
        assert sample["metric"]["title"].endswith(f" {sample['metric']['job_id']}")


def test_the_page_of_the_server_is_well_formed(live: Live) -> None:
    done = promtool("check", "metrics", text=read(live.page))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_server_tells_exactly_the_metrics_that_are_listed(live: Live) -> None:
    listed = {name: metric for name, metric in metrics().items() if name not in ON_GPUS_ONLY}
    for name in listed:
        live.prometheus.wait_for(f"{name}_count" if listed[name].type == "histogram" else name)
    families = {family.name: family for family in text_string_to_metric_families(read(live.page))}
    found: dict[str, frozenset[str]] = {}
    for family in families.values():
        if family.name.endswith("_created") or not family.samples:
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = frozenset(label for sample in family.samples for label in sample.labels if label != "le")
        assert name in listed, f"{name} is not in docs/observability.md"
        assert family.type == listed[name].type, name
    assert found == {name: metric.labels for name, metric in listed.items()}


@pytest.mark.parametrize("query", [query for query in [*queries(), *variables()] if str(query) not in NEEDS], ids=str)
def test_every_query_of_a_board_returns_something_on_a_cluster_without_gpus(live: Live, query: Query) -> None:
    expr = query.with_values(live.job_id if query.board == "job" else ".*")
    live.prometheus.wait_until(tells_something(live.prometheus, expr), expr)


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in NEEDS])
def test_every_recording_rule_returns_something_on_a_cluster_without_gpus(live: Live, name: str) -> None:
    live.prometheus.wait_until(tells_something(live.prometheus, name), name)


def test_no_alert_is_seen_on_a_healthy_cluster(live: Live) -> None:
    live.prometheus.wait_for("device:lockstep_utilization:ratio")
    about_use = {"LockstepAllocatedWorkerIdle", "LockstepInputBound", "LockstepStraggler", "LockstepDiskFull"}
    seen = {
        alert["labels"]["alertname"]
        for rule in live.prometheus.rules()
        if rule["type"] == "alerting"
        for alert in rule["alerts"]
        # Jobs of other tests on this server may have failed.
        if alert["labels"].get("job_id", live.job_id) == live.job_id and "reason" not in alert["labels"]
    }
    assert seen <= about_use  # these depend on the machine that tests run on


@pytest.mark.parametrize("source", ["live", "gpu_cluster"])
def test_every_rule_is_well_and_the_target_is_up(request: pytest.FixtureRequest, source: str) -> None:
    fixture = request.getfixturevalue(source)
    prometheus: Prometheus = fixture.prometheus if isinstance(fixture, Live) else fixture
    prometheus.wait_until(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()))
    assert {rule["name"]: rule["lastError"] for rule in prometheus.rules() if rule["health"] != "ok"} == {}
    assert [target["health"] for target in prometheus.targets()] == ["up"]


def test_what_may_return_nothing_is_something_that_is_asked_for() -> None:
    assert set(NEEDS) <= {str(query) for query in queries()} | set(RECORDED)


def test_a_stopped_prometheus_leaves_nothing(tmp_path: Path) -> None:
    with page_of_a_gpu_cluster() as page, Prometheus(tmp_path, page) as prometheus:
        process = prometheus._process
    assert process.poll() is not None


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())
