"""Workers that stay for the next job, on real Ray."""

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from lockstep.client import Client
from tests.integration.conftest import Server, digits, quick
from tests.support.alone import assert_curve_of_the_engine_alone
from tests.support.foreign_ray import foreign_ray

MakeServer = Callable[..., Server]


def pids_of(server: Server) -> set[int]:
    return {process.pid for process in server.processes("ray::Worker")}


def wide(cpus_per_worker: float, workers: int = 1) -> dict[str, Any]:
    """A job whose workers hold so much."""
    spec = quick(workers, workers, max_epochs=1)
    spec["resources"]["cpus_per_worker"] = cpus_per_worker
    return spec


def test_workers_are_used_again_make_room_and_leave_with_the_server(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "3", "--warm-workers", "0").start()
    with server.client() as client:
        client.submit_job(digits(workers=2)).wait()
        used = pids_of(server)
        assert len(used) == 2, "they are there when the job is seen to have succeeded"
        assert_another_job_uses_them(server, client, used)

        one, _ = sorted(used)
        psutil.Process(one).kill()
        killed = client.submit_job(quick(workers=2)).wait()
        assert_curve_of_the_engine_alone(killed)
        assert (killed.attempt, killed.restarts) == (1, 0)
        assert one not in pids_of(server)

        wide_job = client.submit_job(wide(3.0)).wait()  # one CPU is free, two are held by warm ones
        assert_curve_of_the_engine_alone(wide_job)
        server.wait_until(lambda: len(pids_of(server)) == 1)
        assert not pids_of(server) & used
        mixed = client.submit_job(quick(workers=3)).wait()
        assert_curve_of_the_engine_alone(mixed)
        assert (wide_job.attempt, mixed.attempt) == (1, 1)
    assert server.stop() == 0
    assert server.processes() == []


def assert_another_job_uses_them(server: Server, client: Client, used: set[int]) -> None:
    for job in (client.submit_job(digits(workers=2, seed=8)).wait(), client.submit_job(quick(workers=2)).wait()):
        assert_curve_of_the_engine_alone(job)
    assert pids_of(server) == used


@pytest.mark.exhaustive
def test_one_spare_is_kept_where_there_is_room(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "1", "--warm-ttl-s", "0").start()
    with server.client() as client:
        server.wait_until(lambda: len(pids_of(server)) == 1)
        spare = pids_of(server)
        assert_curve_of_the_engine_alone(client.submit_job(quick(workers=1)).wait())
        assert pids_of(server) == spare
        assert_curve_of_the_engine_alone(client.submit_job(wide(0.75)).wait())
        assert pids_of(server).isdisjoint(spare)


@pytest.mark.exhaustive
def test_warm_workers_are_found_again_after_a_crash_of_the_server(make_server: MakeServer) -> None:
    server = make_server("--num-cpus", "2", "--warm-workers", "0").start()
    with server.client() as client:
        client.submit_job(digits(workers=2)).wait()
    used = pids_of(server)
    server.kill()
    server.start()
    with server.client() as client:
        assert_curve_of_the_engine_alone(client.submit_job(digits(workers=2)).wait())
    assert pids_of(server) == used


@pytest.mark.exhaustive
def test_a_server_that_stops_leaves_no_worker_on_a_cluster_of_others(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with foreign_ray(monkeypatch, num_cpus=3) as cluster:
        server = make_server("--ray-address", cluster.address).start()

        def workers() -> list[psutil.Process]:
            """Their parents are the cluster's, not the server's."""
            children = cluster.head.children(recursive=True)
            return [child for child in children if "ray::Worker" in " ".join(cmdline(child))]

        with server.client() as client:
            client.submit_job(quick(workers=2)).wait()
        assert len(workers()) >= 2
        assert server.stop() == 0
        _, left = psutil.wait_procs(workers(), timeout=10)
        assert not left


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
