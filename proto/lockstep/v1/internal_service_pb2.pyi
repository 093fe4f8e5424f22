import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from lockstep.v1 import checkpoint_service_pb2 as _checkpoint_service_pb2
from lockstep.v1 import job_pb2 as _job_pb2
from lockstep.v1 import job_spec_pb2 as _job_spec_pb2
from lockstep.v1 import data_pb2 as _data_pb2
from lockstep.v1 import model_pb2 as _model_pb2
from lockstep.v1 import optimizer_pb2 as _optimizer_pb2
from lockstep.v1 import ledger_pb2 as _ledger_pb2
from lockstep.v1 import log_service_pb2 as _log_service_pb2
from lockstep.v1 import metrics_service_pb2 as _metrics_service_pb2
from lockstep.v1 import telemetry_pb2 as _telemetry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectLauncherRequest(_message.Message):
    __slots__ = ("ready", "capacity", "gang_started", "gang_stopped", "gang_changed", "heartbeat", "processes")
    READY_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    GANG_STARTED_FIELD_NUMBER: _ClassVar[int]
    GANG_STOPPED_FIELD_NUMBER: _ClassVar[int]
    GANG_CHANGED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    ready: LauncherReady
    capacity: ClusterCapacity
    gang_started: GangStarted
    gang_stopped: GangStopped
    gang_changed: GangChanged
    heartbeat: Heartbeat
    processes: WorkerProcesses
    def __init__(self, ready: _Optional[_Union[LauncherReady, _Mapping]] = ..., capacity: _Optional[_Union[ClusterCapacity, _Mapping]] = ..., gang_started: _Optional[_Union[GangStarted, _Mapping]] = ..., gang_stopped: _Optional[_Union[GangStopped, _Mapping]] = ..., gang_changed: _Optional[_Union[GangChanged, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., processes: _Optional[_Union[WorkerProcesses, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LauncherReady(_message.Message):
    __slots__ = ("epoch", "gangs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GANGS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    gangs: _containers.RepeatedCompositeFieldContainer[GangChanged]
    def __init__(self, epoch: _Optional[int] = ..., gangs: _Optional[_Iterable[_Union[GangChanged, _Mapping]]] = ...) -> None: ...

class ClusterCapacity(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeCapacity]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeCapacity, _Mapping]]] = ...) -> None: ...

class NodeCapacity(_message.Message):
    __slots__ = ("node_id", "node_name", "cpus", "gpus", "total_cpus", "total_gpus")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_CPUS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_GPUS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    node_name: str
    cpus: float
    gpus: float
    total_cpus: float
    total_gpus: float
    def __init__(self, node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., cpus: _Optional[float] = ..., gpus: _Optional[float] = ..., total_cpus: _Optional[float] = ..., total_gpus: _Optional[float] = ...) -> None: ...

class WorkerProcesses(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[WorkerProcess]
    def __init__(self, processes: _Optional[_Iterable[_Union[WorkerProcess, _Mapping]]] = ...) -> None: ...

class WorkerProcess(_message.Message):
    __slots__ = ("node_id", "pid", "cpus", "gpus", "owner", "is_warm", "memory_bytes", "data_bytes", "idle_since", "job_id", "attempt", "number", "gpu_ids")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    IS_WARM_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SINCE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GPU_IDS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    pid: int
    cpus: float
    gpus: float
    owner: str
    is_warm: bool
    memory_bytes: int
    data_bytes: int
    idle_since: _timestamp_pb2.Timestamp
    job_id: str
    attempt: int
    number: int
    gpu_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_id: _Optional[str] = ..., pid: _Optional[int] = ..., cpus: _Optional[float] = ..., gpus: _Optional[float] = ..., owner: _Optional[str] = ..., is_warm: bool = ..., memory_bytes: _Optional[int] = ..., data_bytes: _Optional[int] = ..., idle_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., number: _Optional[int] = ..., gpu_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class GangStarted(_message.Message):
    __slots__ = ("job_id", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class GangStopped(_message.Message):
    __slots__ = ("job_id", "attempt", "error", "is_too_small")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    IS_TOO_SMALL_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    error: _job_pb2.JobError
    is_too_small: bool
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., error: _Optional[_Union[_job_pb2.JobError, _Mapping]] = ..., is_too_small: bool = ...) -> None: ...

class GangChanged(_message.Message):
    __slots__ = ("job_id", "attempt", "revision", "node_ids", "running_workers", "message", "refused_node_ids", "refuses_stop")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    REFUSES_STOP_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    revision: int
    node_ids: _containers.RepeatedScalarFieldContainer[str]
    running_workers: int
    message: str
    refused_node_ids: _containers.RepeatedScalarFieldContainer[str]
    refuses_stop: bool
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., revision: _Optional[int] = ..., node_ids: _Optional[_Iterable[str]] = ..., running_workers: _Optional[int] = ..., message: _Optional[str] = ..., refused_node_ids: _Optional[_Iterable[str]] = ..., refuses_stop: bool = ...) -> None: ...

class ConnectLauncherResponse(_message.Message):
    __slots__ = ("start_gang", "stop_gang", "resize_gang", "drain")
    START_GANG_FIELD_NUMBER: _ClassVar[int]
    STOP_GANG_FIELD_NUMBER: _ClassVar[int]
    RESIZE_GANG_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    start_gang: StartGang
    stop_gang: StopGang
    resize_gang: ResizeGang
    drain: Drain
    def __init__(self, start_gang: _Optional[_Union[StartGang, _Mapping]] = ..., stop_gang: _Optional[_Union[StopGang, _Mapping]] = ..., resize_gang: _Optional[_Union[ResizeGang, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartGang(_message.Message):
    __slots__ = ("job_id", "attempt", "spec", "node_ids", "coordinator_address", "attempt_token", "epoch", "checkpoint_uri", "init_from_uri", "owner", "curve_digest")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    INIT_FROM_URI_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    CURVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    spec: _job_spec_pb2.JobSpec
    node_ids: _containers.RepeatedScalarFieldContainer[str]
    coordinator_address: str
    attempt_token: str
    epoch: int
    checkpoint_uri: str
    init_from_uri: str
    owner: str
    curve_digest: str
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., spec: _Optional[_Union[_job_spec_pb2.JobSpec, _Mapping]] = ..., node_ids: _Optional[_Iterable[str]] = ..., coordinator_address: _Optional[str] = ..., attempt_token: _Optional[str] = ..., epoch: _Optional[int] = ..., checkpoint_uri: _Optional[str] = ..., init_from_uri: _Optional[str] = ..., owner: _Optional[str] = ..., curve_digest: _Optional[str] = ...) -> None: ...

class ResizeGang(_message.Message):
    __slots__ = ("job_id", "attempt", "revision", "node_ids", "epoch")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    revision: int
    node_ids: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., revision: _Optional[int] = ..., node_ids: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ...) -> None: ...

class StopGang(_message.Message):
    __slots__ = ("job_id", "attempt", "grace_s", "keep", "refusable")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    REFUSABLE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    grace_s: float
    keep: bool
    refusable: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., grace_s: _Optional[float] = ..., keep: bool = ..., refusable: _Optional[int] = ...) -> None: ...

class ReportProgressRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "generation", "sequence", "progress", "points", "hardware_class", "result", "notes", "heals", "kept_checkpoints", "startup")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    HEALS_FIELD_NUMBER: _ClassVar[int]
    KEPT_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    STARTUP_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    generation: int
    sequence: int
    progress: _job_pb2.JobProgress
    points: _containers.RepeatedCompositeFieldContainer[_metrics_service_pb2.MetricPoint]
    hardware_class: str
    result: _job_pb2.JobResult
    notes: _containers.RepeatedScalarFieldContainer[str]
    heals: int
    kept_checkpoints: KeptCheckpoints
    startup: Startup
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., generation: _Optional[int] = ..., sequence: _Optional[int] = ..., progress: _Optional[_Union[_job_pb2.JobProgress, _Mapping]] = ..., points: _Optional[_Iterable[_Union[_metrics_service_pb2.MetricPoint, _Mapping]]] = ..., hardware_class: _Optional[str] = ..., result: _Optional[_Union[_job_pb2.JobResult, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ..., heals: _Optional[int] = ..., kept_checkpoints: _Optional[_Union[KeptCheckpoints, _Mapping]] = ..., startup: _Optional[_Union[Startup, _Mapping]] = ...) -> None: ...

class Startup(_message.Message):
    __slots__ = ("data_ready_s", "joined_s", "first_step_s")
    DATA_READY_S_FIELD_NUMBER: _ClassVar[int]
    JOINED_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_S_FIELD_NUMBER: _ClassVar[int]
    data_ready_s: float
    joined_s: float
    first_step_s: float
    def __init__(self, data_ready_s: _Optional[float] = ..., joined_s: _Optional[float] = ..., first_step_s: _Optional[float] = ...) -> None: ...

class KeptCheckpoints(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[_checkpoint_service_pb2.Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[_checkpoint_service_pb2.Checkpoint, _Mapping]]] = ...) -> None: ...

class ReportProgressResponse(_message.Message):
    __slots__ = ("acknowledged_sequence",)
    ACKNOWLEDGED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    acknowledged_sequence: int
    def __init__(self, acknowledged_sequence: _Optional[int] = ...) -> None: ...

class ReportLogsRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "number", "lines", "ends", "spool")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    SPOOL_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    number: int
    lines: _containers.RepeatedCompositeFieldContainer[_log_service_pb2.LogLine]
    ends: _containers.RepeatedScalarFieldContainer[int]
    spool: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., number: _Optional[int] = ..., lines: _Optional[_Iterable[_Union[_log_service_pb2.LogLine, _Mapping]]] = ..., ends: _Optional[_Iterable[int]] = ..., spool: _Optional[int] = ...) -> None: ...

class ReportLogsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportLedgerRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "number", "rank", "node_id", "sequence", "seconds", "steps", "examples", "step_duration_counts", "step_duration_sum_s", "flops_per_step", "cpu_seconds", "memory_bytes", "gpu_memory_bytes", "is_last", "account_id", "under_way")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEP_DURATION_COUNTS_FIELD_NUMBER: _ClassVar[int]
    STEP_DURATION_SUM_S_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    number: int
    rank: int
    node_id: str
    sequence: int
    seconds: _ledger_pb2.PhaseSeconds
    steps: int
    examples: int
    step_duration_counts: _containers.RepeatedScalarFieldContainer[int]
    step_duration_sum_s: float
    flops_per_step: float
    cpu_seconds: float
    memory_bytes: int
    gpu_memory_bytes: int
    is_last: bool
    account_id: int
    under_way: _ledger_pb2.PhaseSeconds
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., number: _Optional[int] = ..., rank: _Optional[int] = ..., node_id: _Optional[str] = ..., sequence: _Optional[int] = ..., seconds: _Optional[_Union[_ledger_pb2.PhaseSeconds, _Mapping]] = ..., steps: _Optional[int] = ..., examples: _Optional[int] = ..., step_duration_counts: _Optional[_Iterable[int]] = ..., step_duration_sum_s: _Optional[float] = ..., flops_per_step: _Optional[float] = ..., cpu_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., gpu_memory_bytes: _Optional[int] = ..., is_last: bool = ..., account_id: _Optional[int] = ..., under_way: _Optional[_Union[_ledger_pb2.PhaseSeconds, _Mapping]] = ...) -> None: ...

class ReportLedgerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportNodeRequest(_message.Message):
    __slots__ = ("node_id", "telemetry")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    telemetry: _telemetry_pb2.NodeTelemetry
    def __init__(self, node_id: _Optional[str] = ..., telemetry: _Optional[_Union[_telemetry_pb2.NodeTelemetry, _Mapping]] = ...) -> None: ...

class ReportNodeResponse(_message.Message):
    __slots__ = ("gpu_uses",)
    GPU_USES_FIELD_NUMBER: _ClassVar[int]
    gpu_uses: _containers.RepeatedCompositeFieldContainer[GpuUse]
    def __init__(self, gpu_uses: _Optional[_Iterable[_Union[GpuUse, _Mapping]]] = ...) -> None: ...

class GpuUse(_message.Message):
    __slots__ = ("index", "job_id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    index: int
    job_id: str
    def __init__(self, index: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...
