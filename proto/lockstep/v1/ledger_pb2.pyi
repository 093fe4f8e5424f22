from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PhaseSeconds(_message.Message):
    __slots__ = ("start_up_s", "data_s", "host_to_device_s", "forward_s", "backward_s", "exchange_s", "exchange_wait_s", "optimizer_s", "validation_s", "checkpoint_s", "healing_s", "idle_s")
    START_UP_S_FIELD_NUMBER: _ClassVar[int]
    DATA_S_FIELD_NUMBER: _ClassVar[int]
    HOST_TO_DEVICE_S_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_S_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_S_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_S_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_S_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_S_FIELD_NUMBER: _ClassVar[int]
    HEALING_S_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    start_up_s: float
    data_s: float
    host_to_device_s: float
    forward_s: float
    backward_s: float
    exchange_s: float
    exchange_wait_s: float
    optimizer_s: float
    validation_s: float
    checkpoint_s: float
    healing_s: float
    idle_s: float
    def __init__(self, start_up_s: _Optional[float] = ..., data_s: _Optional[float] = ..., host_to_device_s: _Optional[float] = ..., forward_s: _Optional[float] = ..., backward_s: _Optional[float] = ..., exchange_s: _Optional[float] = ..., exchange_wait_s: _Optional[float] = ..., optimizer_s: _Optional[float] = ..., validation_s: _Optional[float] = ..., checkpoint_s: _Optional[float] = ..., healing_s: _Optional[float] = ..., idle_s: _Optional[float] = ...) -> None: ...

class RankLedger(_message.Message):
    __slots__ = ("rank", "seconds", "node_id", "node_name", "steps", "memory_bytes", "gpu_memory_bytes", "cpu_seconds")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    seconds: PhaseSeconds
    node_id: str
    node_name: str
    steps: int
    memory_bytes: int
    gpu_memory_bytes: int
    cpu_seconds: float
    def __init__(self, rank: _Optional[int] = ..., seconds: _Optional[_Union[PhaseSeconds, _Mapping]] = ..., node_id: _Optional[str] = ..., node_name: _Optional[str] = ..., steps: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., gpu_memory_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("ranks", "straggler_rank", "straggler_lag_ratio", "flops_per_step")
    RANKS_FIELD_NUMBER: _ClassVar[int]
    STRAGGLER_RANK_FIELD_NUMBER: _ClassVar[int]
    STRAGGLER_LAG_RATIO_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[RankLedger]
    straggler_rank: int
    straggler_lag_ratio: float
    flops_per_step: float
    def __init__(self, ranks: _Optional[_Iterable[_Union[RankLedger, _Mapping]]] = ..., straggler_rank: _Optional[int] = ..., straggler_lag_ratio: _Optional[float] = ..., flops_per_step: _Optional[float] = ...) -> None: ...
