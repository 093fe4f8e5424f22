"""A real server over a real socket and a real store; the launcher's side is played by the test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lockstep.server.application import Application
from lockstep.server.settings import Settings
from lockstep.v1.catalog_service_pb2_grpc import CatalogServiceStub
from lockstep.v1.checkpoint_service_pb2 import Checkpoint, CheckpointFile
from lockstep.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from lockstep.v1.cluster_service_pb2_grpc import ClusterServiceStub
from lockstep.v1.internal_service_pb2 import (
    ClusterCapacity,
    ConnectLauncherRequest,
    ConnectLauncherResponse,
    GangChanged,
    GangStarted,
    GangStopped,
    KeptCheckpoints,
    LauncherReady,
    NodeCapacity,
    ReportProgressRequest,
    ReportProgressResponse,
    ResizeGang,
    StartGang,
    StopGang,
)
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import Job, JobError, JobProgress, JobResult
from lockstep.v1.job_service_pb2 import GetJobRequest, SubmitJobRequest, WatchJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, MetricPoint
from lockstep.v1.metrics_service_pb2_grpc import MetricsServiceStub


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
        assert application.parts is not None
        self._epoch = application.parts.store.cluster.epoch
        self._stub = InternalServiceStub(channel)
        self.call: Any = self._stub.ConnectLauncher(metadata=(("lockstep-launcher-token", application.launcher_token),))

    async def say(self, **fact: Any) -> None:
        await self.call.write(ConnectLauncherRequest(**fact))

    async def be_ready(self, cpus: float = 2.0, gpus: float = 0.0, gangs: Sequence[GangChanged] = ()) -> None:
        """Come into service, with gangs that an earlier launcher has left."""
        await self.say(ready=LauncherReady(epoch=self._epoch, gangs=gangs))
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

    async def next_drain(self) -> None:
        order = await self.next_order()
        assert order.HasField("drain"), order

    async def next_resize(self) -> ResizeGang:
        order = await self.next_order()
        assert order.HasField("resize_gang"), order
        return order.resize_gang

    async def gang_changed(
        self,
        gang: StartGang,
        node_ids: Sequence[str],
        *,
        revision: int = 0,
        running: int | None = None,
        message: str = "",
    ) -> None:
        await self.say(gang_changed=changed(gang, node_ids, revision=revision, running=running, message=message))

    async def gang_started(self, gang: StartGang) -> None:
        await self.say(gang_started=GangStarted(job_id=gang.job_id, attempt=gang.attempt))

    async def gang_stopped(
        self, gang: StartGang, reason: str = "", message: str = "it broke", *, is_too_small: bool = False
    ) -> None:
        error = JobError(reason=reason, message=message) if reason else None
        stopped = GangStopped(job_id=gang.job_id, attempt=gang.attempt, error=error, is_too_small=is_too_small)
        await self.say(gang_stopped=stopped)

    async def finish(self, gang: StartGang, sequence: int, **fields: Any) -> None:
        """Report the result of a job, and let its workers go."""
        await self.report(gang, sequence, **({"digest": "abc"} | fields))
        await self.gang_stopped(gang)

    async def report(
        self,
        gang: StartGang,
        sequence: int,
        *,
        step: int = 1,
        points: list[MetricPoint] | None = None,
        digest: str = "",
        token: str | None = None,
        checkpoints: Sequence[Checkpoint] | None = None,
        **fields: Any,
    ) -> ReportProgressResponse:
        """Report as rank 0 does; `checkpoints` are all that there are."""
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
        if checkpoints is not None:
            request.kept_checkpoints.CopyFrom(KeptCheckpoints(checkpoints=checkpoints))
        request.MergeFrom(ReportProgressRequest(**fields))
        metadata = (("lockstep-attempt-token", gang.attempt_token if token is None else token),)
        response: ReportProgressResponse = await self._stub.ReportProgress(request, metadata=metadata)
        return response

    async def leave(self) -> None:
        await self.call.done_writing()


def changed(
    gang: StartGang, node_ids: Sequence[str], *, revision: int = 0, running: int | None = None, message: str = ""
) -> GangChanged:
    """Say who is in a gang; all of them train unless it is said otherwise."""
    return GangChanged(
        job_id=gang.job_id,
        attempt=gang.attempt,
        revision=revision,
        node_ids=node_ids,
        running_workers=len(node_ids) if running is None else running,
        message=message,
    )


def write_checkpoint(root: Path, step: int, files: dict[str, bytes] | None = None, digest: str = "") -> Checkpoint:
    """Write the folder of a checkpoint as workers do, and return what they report of it."""
    given = files or {"model.safetensors": b"model" * 100, "training.safetensors": b"training" * 100}
    folder = root / f"step-{step:012}"
    folder.mkdir(parents=True)
    listed = [_file(name, data) for name, data in given.items()]
    said = [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in listed]
    manifest = json.dumps({"format": 2, "step": step, "files": said}).encode()
    for name, data in {**given, "manifest.json": manifest}.items():
        (folder / name).write_bytes(data)
    listed.append(_file("manifest.json", manifest))
    return Checkpoint(step=step, uri=str(folder), files=listed, weights_digest=digest or f"{step:064x}")


def _file(name: str, data: bytes) -> CheckpointFile:
    return CheckpointFile(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class Running:
    """A running server with stubs to call it."""

    def __init__(self, application: Application, channel: grpc.aio.Channel) -> None:
        assert application.parts is not None
        self.application = application
        self.parts = application.parts
        self.coordinator = application.parts.coordinator
        self.channel = channel
        self.jobs = JobServiceStub(channel)
        self.metrics = MetricsServiceStub(channel)
        self.checkpoints = CheckpointServiceStub(channel)
        self.catalog = CatalogServiceStub(channel)
        self.cluster = ClusterServiceStub(channel)

    def launcher(self) -> ScriptedLauncher:
        return ScriptedLauncher(self.application, self.channel)

    async def submit(self, **changes: Any) -> Job:
        """Submit a small job."""
        return await self.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(**changes)))

    async def get(self, job_id: str) -> Job:
        return await self.jobs.GetJob(GetJobRequest(job_id=job_id))

    async def messages(self, job_id: str, count: int = 0) -> list[str]:
        """Return the messages of a job's events: of the first `count`, or of all when the job has ended."""
        found: list[str] = []
        call = self.jobs.WatchJob(WatchJobRequest(job_id=job_id))
        async for response in call:
            found += [event.message for event in response.events]
            if count and len(found) >= count:
                call.cancel()
                break
        return found

    async def until(self, job_id: str, is_so: Callable[[Job], bool]) -> Job:
        """Follow a job until something holds."""
        call = self.jobs.WatchJob(WatchJobRequest(job_id=job_id))
        async for response in call:
            if is_so(response.job):
                call.cancel()
                return response.job
        raise AssertionError(f"job {job_id} ended before it came to that")

    async def reaches(self, job_id: str, state: int) -> Job:
        """Follow a job until it is in a state."""
        return await self.until(job_id, lambda job: job.state == state)


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


async def start_job(server: Running, **changes: Any) -> tuple[ScriptedLauncher, StartGang]:
    """Submit a small job to a server that has a launcher in service; returns that, and its order to start workers."""
    launcher = server.launcher()
    await launcher.be_ready()
    await server.submit(**changes)
    return launcher, await launcher.next_start()


def loss_at(step: int, value: float, name: str = "train_loss", kind: Any = METRIC_KIND_RESULT) -> MetricPoint:
    return MetricPoint(name=name, step=step, epoch=step / 10, value=value, kind=kind)


class Refused(grpc.aio.AioRpcError):
    """An error of our server: each says why."""

    def details(self) -> str:
        return super().details() or ""


async def status_of(call: Awaitable[Any]) -> Refused:
    """Return the error that a call ends with."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        assert error.details() is not None
        return cast(Refused, error)
    raise AssertionError(f"the call succeeded: {response}")


async def fetch(address: str, path: str) -> tuple[int, str]:
    """Fetch a page of the HTTP port, without holding up the server, which runs on this event loop."""
    return await asyncio.to_thread(_fetch, address, path)


def _fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def violations_of(error: grpc.aio.AioRpcError) -> dict[str, str]:
    status = rpc_status.from_call(error)
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(bad_request)
    return {violation.field: violation.description for violation in bad_request.field_violations}
