"""A real server in a process of its own whose cluster is played: for loads that no training should disturb."""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psutil

from lockstep.v1 import internal_service_pb2 as messages
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JobProgress
from lockstep.v1.job_service_pb2 import SubmitJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import MetricPoint


class PlayedServer:
    """A server without a cluster of its own.

    Attributes:
        facts: its addresses as `grpc` and `http`, its `epoch`, and what launcher and agents must show.
        process: its process.
    """

    def __init__(self, facts: dict[str, Any], process: psutil.Process) -> None:
        self.facts, self.process = facts, process

    @property
    def target(self) -> str:
        """Its gRPC address."""
        address: str = self.facts["grpc"]
        return address

    def cpu_s(self) -> float:
        """CPU time that it has taken so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def played_server(folder: Path | None = None) -> Iterator[PlayedServer]:
    """Run a server, in a new folder unless one is given, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as own:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder or own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield PlayedServer(json.loads(process.stdout.readline()), psutil.Process(process.pid))
        finally:
            process.stdin.close()
            process.wait(60)


class PlayedJob:
    """A job that trains on a cluster of one node, as far as the server can tell."""

    def __init__(self, server: PlayedServer, spec: JobSpec) -> None:
        """Come into service as the launcher, submit the job and start it."""
        self._channel = grpc.insecure_channel(server.target)
        self._stub = InternalServiceStub(self._channel)
        self._facts: SimpleQueue[Any] = SimpleQueue()
        metadata = (("lockstep-launcher-token", server.facts["launcher_token"]),)
        orders = self._stub.ConnectLauncher(iter(self._facts.get, None), metadata=metadata)
        node = messages.NodeCapacity(node_id="a", node_name="a", cpus=2, total_cpus=2)
        self._facts.put(messages.ConnectLauncherRequest(ready=messages.LauncherReady(epoch=server.facts["epoch"])))
        self._facts.put(messages.ConnectLauncherRequest(capacity=messages.ClusterCapacity(nodes=[node])))
        self.job_id = JobServiceStub(self._channel).SubmitJob(SubmitJobRequest(spec=spec)).job_id
        self._gang = next(iter(orders)).start_gang
        self._sequence = 0

    def report(self, step: int, points: list[MetricPoint]) -> None:
        """Report as rank 0 does."""
        self._sequence += 1
        request = messages.ReportProgressRequest(
            job_id=self.job_id,
            attempt=self._gang.attempt,
            generation=1,
            sequence=self._sequence,
            progress=JobProgress(step=step, total_steps=1_000_000, epoch=step / 1000),
            points=points,
            hardware_class="benchmark",
        )
        self._stub.ReportProgress(request, metadata=(("lockstep-attempt-token", self._gang.attempt_token),))

    def close(self) -> None:
        """Leave."""
        self._facts.put(None)
        self._channel.close()


def serve(folder: Path) -> None:
    """Serve until the input of this process ends; says its addresses and tokens in a line of JSON."""
    from lockstep.server.application import Application
    from lockstep.server.logging import configure
    from lockstep.server.settings import Settings

    configure("json")  # to standard error

    async def run() -> None:
        settings = Settings(data_dir=folder, listen="127.0.0.1:0", http="127.0.0.1:0")
        application = Application(settings, keeps_cluster=False)
        await application.start()
        told = {
            "grpc": application.grpc_address,
            "http": application.http_address,
            "launcher_token": application.launcher_token,
            "node_token": application.node_token,
            "epoch": application.parts.store.cluster.epoch if application.parts else 0,
        }
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await application.stop()

    asyncio.run(run())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
