from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LauncherSettings(_message.Message):
    __slots__ = ("coordinator_address", "reports_address", "launcher_token", "node_token", "epoch", "ray_address", "namespace", "options")
    COORDINATOR_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAUNCHER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NODE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RAY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    coordinator_address: str
    reports_address: str
    launcher_token: str
    node_token: str
    epoch: int
    ray_address: str
    namespace: str
    options: LauncherOptions
    def __init__(self, coordinator_address: _Optional[str] = ..., reports_address: _Optional[str] = ..., launcher_token: _Optional[str] = ..., node_token: _Optional[str] = ..., epoch: _Optional[int] = ..., ray_address: _Optional[str] = ..., namespace: _Optional[str] = ..., options: _Optional[_Union[LauncherOptions, _Mapping]] = ...) -> None: ...

class LauncherOptions(_message.Message):
    __slots__ = ("log_format", "warm_ttl_s", "warm_workers", "warm_memory_bytes", "data_cache_bytes", "gpu_job_mapping_dir")
    LOG_FORMAT_FIELD_NUMBER: _ClassVar[int]
    WARM_TTL_S_FIELD_NUMBER: _ClassVar[int]
    WARM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    WARM_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_JOB_MAPPING_DIR_FIELD_NUMBER: _ClassVar[int]
    log_format: str
    warm_ttl_s: float
    warm_workers: int
    warm_memory_bytes: int
    data_cache_bytes: int
    gpu_job_mapping_dir: str
    def __init__(self, log_format: _Optional[str] = ..., warm_ttl_s: _Optional[float] = ..., warm_workers: _Optional[int] = ..., warm_memory_bytes: _Optional[int] = ..., data_cache_bytes: _Optional[int] = ..., gpu_job_mapping_dir: _Optional[str] = ...) -> None: ...
