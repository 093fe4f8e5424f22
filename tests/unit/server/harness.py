"""A real server over a real socket and a real store; the launcher's side is played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from lockstep.server.application import Application
from lockstep.server.settings import Settings
from lockstep.v1.catalog_service_pb2_grpc import CatalogServiceStub
from lockstep.v1.internal_service_pb2 import (
    ClusterCapacity,
    ConnectLauncherRequest,
    ConnectLauncherResponse,
    GangStarted,
    GangStopped,
    LauncherReady,
    NodeCapacity,
    ReportProgressRequest,
    ReportProgressResponse,
    StartGang,
    StopGang,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import Job, JobError, JobProgress, JobResult
from lockstep.v1.job_service_pb2 import WatchJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, MetricPoint
from lockstep.v1.metrics_service_pb2_grpc import MetricsServiceStub

# Nothing here takes long; a test that waits for what never comes shall fail soon.
TEST_TIMEOUT_S = 60


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await test

    asyncio.run(bounded())


def digits_spec(**changes: Any) -> JobSpec:
    """Return a small valid spec; a change replaces a whole section."""
    spec: dict[str, Any] = {
        "model": {"mlp": {}},
        "data": {"builtin": {"name": "digits"}},
        "optimizer": {"sgd": {"learning_rate": 0.1}},
    }
    return JobSpec(**(spec | changes))


class ScriptedLauncher:
    """The launcher's side of the line, and the workers', moved by the test step by step."""

    def __init__(self, application: Application, channel: grpc.aio.Channel) -> None:
        assert application.coordinator is not None
        self._epoch = application.coordinator.store.epoch
        self._stub = InternalServiceStub(channel)
        self.call: Any = self._stub.ConnectLauncher(metadata=(("lockstep-launcher-token", application.launcher_token),))

    async def say(self, **fact: Any) -> None:
        await self.call.write(ConnectLauncherRequest(**fact))

    async def be_ready(self, cpus: float = 2.0, gpus: float = 0.0) -> None:
        await self.say(ready=LauncherReady(epoch=self._epoch))
        await self.offer({"node-a": (cpus, gpus)})

    async def offer(self, nodes: dict[str, tuple[float, float]]) -> None:
        capacities = [
            NodeCapacity(node_id=name, node_name=name, cpus=cpus, gpus=gpus, total_cpus=cpus, total_gpus=gpus)
            for name, (cpus, gpus) in nodes.items()
        ]
        await self.say(capacity=ClusterCapacity(nodes=capacities))

    async def next_order(self) -> ConnectLauncherResponse:
        order: ConnectLauncherResponse = await self.call.read()
        assert isinstance(order, ConnectLauncherResponse), order
        return order

    async def next_start(self) -> StartGang:
        order = await self.next_order()
        assert order.HasField("start_gang"), order
        return order.start_gang

    async def next_stop(self) -> StopGang:
        order = await self.next_order()
        assert order.HasField("stop_gang"), order
        return order.stop_gang

    async def gang_started(self, gang: StartGang) -> None:
        await self.say(gang_started=GangStarted(job_id=gang.job_id, attempt=gang.attempt))

    async def gang_stopped(self, gang: StartGang, reason: str = "", message: str = "it broke") -> None:
        error = JobError(reason=reason, message=message) if reason else None
        await self.say(gang_stopped=GangStopped(job_id=gang.job_id, attempt=gang.attempt, error=error))

    async def report(
        self,
        gang: StartGang,
        sequence: int,
        *,
        step: int = 1,
        points: list[MetricPoint] | None = None,
        digest: str = "",
        token: str | None = None,
        **fields: Any,
    ) -> ReportProgressResponse:
        request = ReportProgressRequest(
            job_id=gang.job_id,
            attempt=gang.attempt,
            generation=1,
            sequence=sequence,
            progress=JobProgress(step=step, total_steps=100, epoch=step / 10),
            points=points or [],
            hardware_class="cpu test",
            result=JobResult(weights_digest=digest, final_metrics={"train_loss": 0.5}) if digest else None,
        )
        request.MergeFrom(ReportProgressRequest(**fields))
        metadata = (("lockstep-attempt-token", gang.attempt_token if token is None else token),)
        response: ReportProgressResponse = await self._stub.ReportProgress(request, metadata=metadata)
        return response

    async def leave(self) -> None:
        await self.call.done_writing()


class Running:
    """A running server with stubs to call it."""

    def __init__(self, application: Application, channel: grpc.aio.Channel) -> None:
        assert application.coordinator is not None
        self.application = application
        self.coordinator = application.coordinator
        self.channel = channel
        self.jobs = JobServiceStub(channel)
        self.metrics = MetricsServiceStub(channel)
        self.catalog = CatalogServiceStub(channel)

    def launcher(self) -> ScriptedLauncher:
        return ScriptedLauncher(self.application, self.channel)

    async def reaches(self, job_id: str, state: int) -> Job:
        """Follow a job until it is in a state."""
        call = self.jobs.WatchJob(WatchJobRequest(job_id=job_id))
        async for response in call:
            if response.job.state == state:
                call.cancel()
                return response.job
        raise AssertionError(f"job {job_id} ended before it came to state {state}")


@asynccontextmanager
async def serving(data_dir: Path, **settings: Any) -> AsyncIterator[Running]:
    """Run a server whose cluster is played by the test."""
    given: dict[str, Any] = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", "num_cpus": 2, "num_gpus": 0}
    application = Application(Settings(data_dir=data_dir, **(given | settings)), keeps_cluster=False)
    await application.start()
    try:
        async with grpc.aio.insecure_channel(application.grpc_address) as channel:
            yield Running(application, channel)
    finally:
        await application.stop()


def loss_at(step: int, value: float, name: str = "train_loss", kind: Any = METRIC_KIND_RESULT) -> MetricPoint:
    return MetricPoint(name=name, step=step, epoch=step / 10, value=value, kind=kind)


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """Return the error that a call ends with."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"the call succeeded: {response}")
