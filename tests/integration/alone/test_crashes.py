"""What is lost when a part of the server is killed: nothing that was acknowledged."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from lockstep.client import JobState
from tests.integration.conftest import Server, endless, quick, wait_for_step
from tests.support.alone import assert_curve_of_the_engine_alone
from tests.support.foreign_ray import ForeignRay, foreign_ray

MakeServer = Callable[..., Server]


@pytest.mark.exhaustive
def test_workers_that_finish_while_the_server_is_away_wait_for_it(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "2").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(quick(max_epochs=60)), 20)
        worker = server.workers(job)[0]
        server.kill()
        while worker.cpu_percent(1.0) > 5:  # until it has nothing left to compute
            continue
    server.start()
    with server.client() as client:
        job = client.get_job(job.job_id).wait()
        assert job.attempt == 1
        assert_curve_of_the_engine_alone(job)
    server.wait_until_nobody_works()


@pytest.mark.exhaustive
def test_a_frozen_launcher_is_replaced_and_its_jobs_go_on(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "3", "--launcher-timeout-s", "3").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(quick(workers=3, max_epochs=300)), 20)
        worker = server.workers(job)[1]
        (frozen,) = server.processes("lockstep.workers.launcher")
        frozen.send_signal(signal.SIGSTOP)
        worker.kill()  # while nobody looks after it
        job.wait()
        assert not frozen.is_running()
        assert (job.attempt, job.restarts, job.heals) == (1, 0, 1)
        assert_curve_of_the_engine_alone(job)
    assert "the launcher says nothing and is killed" in server.log()
    assert server.stop() == 0


@pytest.mark.exhaustive
def test_a_server_that_is_stopped_goes_on_from_a_checkpoint(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "2").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(quick(max_epochs=300)), 20)
    assert server.stop() == 0
    assert not server.processes()
    server.start()
    with server.client() as client:
        job = client.get_job(job.job_id).wait()
        assert (job.attempt, job.restarts) == (2, 0)
        assert any("going on from the checkpoint of step" in event.message for event in job.events())
        assert_curve_of_the_engine_alone(job)


@pytest.mark.exhaustive
def test_a_killed_ray_head_comes_back_and_so_do_the_jobs(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "2").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(quick(max_epochs=300)), 20)
        for process in server.processes("ray.scripts.scripts") + server.processes("gcs_server"):
            process.kill()
        job.wait()
        assert job.attempt >= 2
        assert_curve_of_the_engine_alone(job)


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForeignRay]:
    with foreign_ray(monkeypatch, num_cpus=2) as cluster:
        yield cluster


def test_a_server_runs_on_an_existing_cluster_and_leaves_it_as_it_was(
    make_server: MakeServer, ray_cluster: ForeignRay
) -> None:
    server = make_server("--ray-address", ray_cluster.address).start()
    with server.client() as client:
        job = client.submit_job(quick()).wait()
        assert job.state is JobState.SUCCEEDED
        wait_for_step(client.submit_job(endless()), 1)
    assert server.stop() == 0
    script = (
        "import os, ray; ray.init(os.environ['ADDRESS'], log_to_driver=False, configure_logging=False); "
        "print(ray.util.list_named_actors(all_namespaces=True), ray.available_resources()['CPU'])"
    )
    seen = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"ADDRESS": ray_cluster.address},
        check=True,
        capture_output=True,
        text=True,
    )
    assert seen.stdout.strip() == "[] 2.0"
