"""Lockstep's client: submit jobs, follow them, read their metrics, fetch their weights.

from lockstep.client import submit_job

job = submit_job("examples/digits-mlp.yaml").wait(progress=True)
print(job.result.weights_digest)
"""

from lockstep.client.client import Client, submit_job
from lockstep.client.cluster import Cluster, Node, Resources, Worker, WorkerState
from lockstep.client.errors import (
    Aborted,
    AlreadyExists,
    CallCancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    InvalidSpec,
    JobCancelled,
    JobEnded,
    JobFailed,
    LockstepError,
    MissingPackage,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    ServerFault,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WaitTimeout,
)
from lockstep.client.job import Job
from lockstep.client.ledger import Ledger, RankLedger
from lockstep.client.models import TrainedModel
from lockstep.client.spec import load_spec
from lockstep.client.telemetry import GpuTelemetry, HostTelemetry, NodeTelemetry
from lockstep.client.types import (
    CatalogEntry,
    CatalogParameter,
    Checkpoint,
    CheckpointFile,
    Failure,
    JobEvent,
    JobState,
    JobUpdate,
    LogLine,
    MetricKind,
    MetricPoint,
    Progress,
    Result,
    Timeline,
)
from lockstep.v1.job_spec_pb2 import JobSpec

__all__ = [
    "Aborted",
    "AlreadyExists",
    "CallCancelled",
    "CatalogEntry",
    "CatalogParameter",
    "Checkpoint",
    "CheckpointFile",
    "Client",
    "Cluster",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Failure",
    "GpuTelemetry",
    "HostTelemetry",
    "InvalidRequest",
    "InvalidSpec",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobEvent",
    "JobFailed",
    "JobSpec",
    "JobState",
    "JobUpdate",
    "Ledger",
    "LockstepError",
    "LogLine",
    "MetricKind",
    "MetricPoint",
    "MissingPackage",
    "Node",
    "NodeTelemetry",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Progress",
    "RankLedger",
    "ResourceExhausted",
    "Resources",
    "Result",
    "ServerFault",
    "Timeline",
    "TrainedModel",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "WaitTimeout",
    "Worker",
    "WorkerState",
    "load_spec",
    "submit_job",
]
