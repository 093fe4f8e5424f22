import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from lockstep.v1 import telemetry_pb2 as _telemetry_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_STARTING: _ClassVar[WorkerState]
    WORKER_STATE_WORKING: _ClassVar[WorkerState]
    WORKER_STATE_WARMING_UP: _ClassVar[WorkerState]
    WORKER_STATE_WARM: _ClassVar[WorkerState]
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_STARTING: WorkerState
WORKER_STATE_WORKING: WorkerState
WORKER_STATE_WARMING_UP: WorkerState
WORKER_STATE_WARM: WorkerState

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "next_page_token")
    NODES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    next_page_token: str
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("cpus", "gpus")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    cpus: float
    gpus: float
    def __init__(self, cpus: _Optional[float] = ..., gpus: _Optional[float] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("is_ready", "not_ready_reason", "nodes", "total", "usable", "held_by_jobs", "held_by_warm_workers", "jobs_running", "jobs_waiting")
    IS_READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_REASON_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    USABLE_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_JOBS_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_WARM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    JOBS_WAITING_FIELD_NUMBER: _ClassVar[int]
    is_ready: bool
    not_ready_reason: str
    nodes: int
    total: Resources
    usable: Resources
    held_by_jobs: Resources
    held_by_warm_workers: Resources
    jobs_running: int
    jobs_waiting: int
    def __init__(self, is_ready: bool = ..., not_ready_reason: _Optional[str] = ..., nodes: _Optional[int] = ..., total: _Optional[_Union[Resources, _Mapping]] = ..., usable: _Optional[_Union[Resources, _Mapping]] = ..., held_by_jobs: _Optional[_Union[Resources, _Mapping]] = ..., held_by_warm_workers: _Optional[_Union[Resources, _Mapping]] = ..., jobs_running: _Optional[int] = ..., jobs_waiting: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("node_id", "name", "total", "usable", "held_by_jobs", "held_by_warm_workers", "workers", "telemetry")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    USABLE_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_JOBS_FIELD_NUMBER: _ClassVar[int]
    HELD_BY_WARM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    total: Resources
    usable: Resources
    held_by_jobs: Resources
    held_by_warm_workers: Resources
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    telemetry: _telemetry_pb2.NodeTelemetry
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., total: _Optional[_Union[Resources, _Mapping]] = ..., usable: _Optional[_Union[Resources, _Mapping]] = ..., held_by_jobs: _Optional[_Union[Resources, _Mapping]] = ..., held_by_warm_workers: _Optional[_Union[Resources, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., telemetry: _Optional[_Union[_telemetry_pb2.NodeTelemetry, _Mapping]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("pid", "resources", "state", "job_id", "attempt", "number", "owner", "idle_since", "memory_bytes", "data_bytes", "rank", "gpu_indexes")
    PID_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    IDLE_SINCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    GPU_INDEXES_FIELD_NUMBER: _ClassVar[int]
    pid: int
    resources: Resources
    state: WorkerState
    job_id: str
    attempt: int
    number: int
    owner: str
    idle_since: _timestamp_pb2.Timestamp
    memory_bytes: int
    data_bytes: int
    rank: int
    gpu_indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, pid: _Optional[int] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., state: _Optional[_Union[WorkerState, str]] = ..., job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., number: _Optional[int] = ..., owner: _Optional[str] = ..., idle_since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., data_bytes: _Optional[int] = ..., rank: _Optional[int] = ..., gpu_indexes: _Optional[_Iterable[int]] = ...) -> None: ...
