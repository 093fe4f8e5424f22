"""Several nodes on one machine: a whole node is lost, another one comes."""

from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import Server, quick, wait_for_event, wait_for_step
from tests.support.alone import assert_curve_of_the_engine_alone
from tests.support.foreign_ray import ForeignRay, foreign_ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForeignRay]:
    with foreign_ray(monkeypatch, num_cpus=1) as cluster:
        yield cluster


@pytest.mark.exhaustive
def test_a_lost_node_is_healed_and_a_new_one_is_used(make_server: Callable[..., Server], cluster: ForeignRay) -> None:
    cluster.add_node(num_cpus=2)
    server = make_server("--ray-address", cluster.address).start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(quick(workers=3, min_workers=1, max_epochs=800)), 20)
        if job.refresh().running_workers < 3:  # the second node came later
            wait_for_event(job, "grown to 3 workers")
        cluster.kill_newest_node()
        wait_for_event(job, "1 worker go")
        cluster.add_node(num_cpus=2)
        wait_for_event(job, "grown to")
        job.wait()
        assert (job.attempt, job.restarts) == (1, 0)
        assert_curve_of_the_engine_alone(job)
    assert server.stop() == 0
