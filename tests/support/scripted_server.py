"""A Lockstep server on a real socket that says what a test tells it to say."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lockstep.v1 import (
    catalog_service_pb2_grpc,
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    job_spec_pb2,
    log_service_pb2_grpc,
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)


@dataclass(frozen=True)
class Refusal:
    """Ends a call with a status, with google.rpc details when there are any."""

    code: grpc.StatusCode
    message: str = "refused"
    details: tuple[Message, ...] = ()

    def end(self, context: grpc.ServicerContext) -> None:
        if not self.details:
            context.abort(self.code, self.message)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.abort_with_status(rpc_status.to_status(status))


UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, "going away")

# A message, a refusal, or a function of the request; for a stream a list of messages that a refusal may end.
Reply = Any


class ScriptedServer:
    """Answers each method from its list of replies; the last one is repeated. Keeps what it was asked."""

    def __init__(self) -> None:
        self._replies: dict[str, list[Reply]] = {}
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.metadata: list[dict[str, str]] = []
        self.seconds_left: list[float | None] = []
        self.port = 0
        self.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on(self, method: str, *replies: Reply) -> None:
        self._replies[method] = list(replies)

    def start(self) -> None:
        """Listen; on the same port as before when it has been stopped."""
        self._pool = futures.ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        self._add_services()
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=0).wait()
        self._pool.shutdown()

    def _add_services(self) -> None:
        jobs = job_service_pb2_grpc.JobServiceServicer()
        for name in ("SubmitJob", "GetJob", "ListJobs", "CancelJob", "PauseJob", "ResumeJob", "UpdateJob"):
            setattr(jobs, name, self._unary(name))
        jobs.WatchJob = self._stream("WatchJob")  # type: ignore[method-assign,assignment]
        metrics = metrics_service_pb2_grpc.MetricsServiceServicer()
        metrics.ListMetrics = self._unary("ListMetrics")  # type: ignore[method-assign,assignment]
        metrics.GetLedger = self._unary("GetLedger")  # type: ignore[method-assign,assignment]
        metrics.StreamMetrics = self._stream("StreamMetrics")  # type: ignore[method-assign,assignment]
        logs = log_service_pb2_grpc.LogServiceServicer()
        logs.StreamLogs = self._stream("StreamLogs")  # type: ignore[method-assign,assignment]
        catalog = catalog_service_pb2_grpc.CatalogServiceServicer()
        for name in ("ListModels", "ListDatasets", "ListOptimizers"):
            setattr(catalog, name, self._unary(name))
        cluster = cluster_service_pb2_grpc.ClusterServiceServicer()
        for name in ("GetCluster", "ListNodes"):
            setattr(cluster, name, self._unary(name))
        checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceServicer()
        checkpoints.ListCheckpoints = self._unary("ListCheckpoints")  # type: ignore[method-assign,assignment]
        checkpoints.DownloadCheckpoint = self._stream("DownloadCheckpoint")  # type: ignore[method-assign,assignment]
        job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(metrics, self._server)
        log_service_pb2_grpc.add_LogServiceServicer_to_server(logs, self._server)
        catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(catalog, self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, self._server)
        checkpoint_service_pb2_grpc.add_CheckpointServiceServicer_to_server(checkpoints, self._server)

    def _next_reply(self, method: str, request: Any, context: grpc.ServicerContext) -> Reply:
        self.requests[method].append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        self.seconds_left.append(context.time_remaining())
        replies = self._replies.get(method)
        if not replies:
            return Refusal(grpc.StatusCode.UNIMPLEMENTED, f"{method} has no script")
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply(request) if callable(reply) else reply

    def _unary(self, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            reply = self._next_reply(method, request, context)
            if isinstance(reply, Refusal):
                reply.end(context)
            return reply

        return answer

    def _stream(self, method: str) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            reply = self._next_reply(method, request, context)
            for item in reply if isinstance(reply, list) else [reply]:
                if isinstance(item, Refusal):
                    item.end(context)
                elif callable(item):
                    item(context)
                else:
                    yield item

        return answer


def a_job(state: str = "QUEUED", job_id: str = "j-1", **fields: Any) -> job_pb2.Job:
    spec = fields.pop("spec", None) or job_spec_pb2.JobSpec(name="digits", training={"max_epochs": 3})
    job = job_pb2.Job(job_id=job_id, state=f"JOB_STATE_{state}", spec=spec, **fields)
    if not job.HasField("create_time"):
        job.create_time.GetCurrentTime()
    return job


def an_update(state: str, *events: tuple[int, str], **fields: Any) -> job_service_pb2.WatchJobResponse:
    """A message of WatchJob; each event is its sequence number and message."""
    job = a_job(state, **fields)
    entries = [
        job_pb2.JobEvent(sequence=sequence, state=f"JOB_STATE_{state}", attempt=1, message=message)
        for sequence, message in events
    ]
    return job_service_pb2.WatchJobResponse(job=job, events=entries)


def a_point(name: str, step: int, value: float, kind: str = "RESULT") -> metrics_service_pb2.MetricPoint:
    return metrics_service_pb2.MetricPoint(
        name=name, step=step, epoch=step / 10, value=value, kind=f"METRIC_KIND_{kind}"
    )


def points(cursor: str, *entries: metrics_service_pb2.MetricPoint) -> metrics_service_pb2.StreamMetricsResponse:
    return metrics_service_pb2.StreamMetricsResponse(points=entries, cursor=cursor)


def nodes(*entries: cluster_service_pb2.Node, token: str = "") -> cluster_service_pb2.ListNodesResponse:
    return cluster_service_pb2.ListNodesResponse(nodes=entries, next_page_token=token)


FILES = {"model.safetensors": b"weights" * 500, "training.safetensors": b"momentum" * 300}
MANIFEST = b'{"step": 200}'


def a_file(name: str, content: bytes) -> checkpoint_service_pb2.CheckpointFile:
    digest = hashlib.sha256(content).hexdigest()
    return checkpoint_service_pb2.CheckpointFile(name=name, size_bytes=len(content), sha256=digest)


def a_checkpoint(step: int = 200, **fields: Any) -> checkpoint_service_pb2.Checkpoint:
    """A checkpoint with FILES; as the workers report it, its manifest is not among them."""
    files = fields.pop("files", None) or [a_file(name, content) for name, content in FILES.items()]
    checkpoint = checkpoint_service_pb2.Checkpoint(
        job_id="j-1", step=step, uri=f"/data/j-1/step-{step:012d}", weights_digest="ab" * 32, files=files, **fields
    )
    if not checkpoint.HasField("create_time"):
        checkpoint.create_time.GetCurrentTime()
    return checkpoint


def checkpoints(*entries: checkpoint_service_pb2.Checkpoint, token: str = "") -> Any:
    return checkpoint_service_pb2.ListCheckpointsResponse(checkpoints=entries, next_page_token=token)


def a_download(
    name: str = "model.safetensors", content: bytes | None = None, checkpoint: Any = None, chunk_bytes: int = 1000
) -> list[checkpoint_service_pb2.DownloadCheckpointResponse]:
    """The messages that bring a file."""
    content = {**FILES, "manifest.json": MANIFEST}[name] if content is None else content
    header = checkpoint_service_pb2.DownloadHeader(checkpoint=checkpoint or a_checkpoint(), file=a_file(name, content))
    chunks = [content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes)]
    message = checkpoint_service_pb2.DownloadCheckpointResponse
    return [message(header=header), *(message(chunk=chunk) for chunk in chunks)]


def violations(reason: str, **description_by_field: str) -> tuple[Message, ...]:
    """Details of an INVALID_ARGUMENT; "__" in a name stands for "."."""
    fields = [
        error_details_pb2.BadRequest.FieldViolation(field=field.replace("__", "."), description=description)
        for field, description in description_by_field.items()
    ]
    return (
        error_details_pb2.ErrorInfo(reason=reason, domain="lockstep"),
        error_details_pb2.BadRequest(field_violations=fields),
    )
