"""Several nodes on one machine: a whole node is lost, another one comes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lockstep.server.ray_head import RayHead
from tests.integration.alone import assert_curve_of_the_engine_alone
from tests.integration.conftest import Server, quick, wait_for_event, wait_for_step

RAY = Path(sys.executable).with_name("ray")


class Cluster:
    """A Ray cluster whose head has one CPU, and other nodes that come and go."""

    def __init__(self, folder: Path) -> None:
        self._head = RayHead(folder, num_cpus=1, num_gpus=0)
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.address = asyncio.run(self._head.start())
        self.environment = self._head.environment()

    def add_node(self, num_cpus: int) -> None:
        command = [RAY, "start", f"--address={self.address}", f"--num-cpus={num_cpus}", "--num-gpus=0", "--block"]
        self._nodes.append(
            subprocess.Popen(
                [*command, "--disable-usage-stats", "--object-store-memory=80000000"],
                env=os.environ | self.environment,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def kill_newest_node(self) -> None:
        """SIGKILL everything on it at once."""
        node = self._nodes.pop()
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        node.wait()
        psutil.wait_procs(processes, timeout=10)

    def close(self) -> None:
        while self._nodes:
            self.kill_newest_node()
        asyncio.run(self._head.stop())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.start()
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, cluster.environment[name])
        yield cluster
    finally:
        cluster.close()


@pytest.mark.exhaustive
def test_a_lost_node_is_healed_and_a_new_one_is_used(make_server: Callable[..., Server], cluster: Cluster) -> None:
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
