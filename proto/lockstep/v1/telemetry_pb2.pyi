import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeTelemetry(_message.Message):
    __slots__ = ("receive_time", "host", "gpus")
    RECEIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    receive_time: _timestamp_pb2.Timestamp
    host: HostTelemetry
    gpus: _containers.RepeatedCompositeFieldContainer[GpuTelemetry]
    def __init__(self, receive_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., host: _Optional[_Union[HostTelemetry, _Mapping]] = ..., gpus: _Optional[_Iterable[_Union[GpuTelemetry, _Mapping]]] = ...) -> None: ...

class HostTelemetry(_message.Message):
    __slots__ = ("cpus", "cpu_utilization_ratio", "memory_total_bytes", "memory_used_bytes", "disk_total_bytes", "disk_used_bytes", "disk_read_bytes_total", "disk_written_bytes_total", "network_received_bytes_total", "network_sent_bytes_total")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    CPU_UTILIZATION_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITTEN_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RECEIVED_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SENT_BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    cpus: int
    cpu_utilization_ratio: float
    memory_total_bytes: int
    memory_used_bytes: int
    disk_total_bytes: int
    disk_used_bytes: int
    disk_read_bytes_total: int
    disk_written_bytes_total: int
    network_received_bytes_total: int
    network_sent_bytes_total: int
    def __init__(self, cpus: _Optional[int] = ..., cpu_utilization_ratio: _Optional[float] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., disk_total_bytes: _Optional[int] = ..., disk_used_bytes: _Optional[int] = ..., disk_read_bytes_total: _Optional[int] = ..., disk_written_bytes_total: _Optional[int] = ..., network_received_bytes_total: _Optional[int] = ..., network_sent_bytes_total: _Optional[int] = ...) -> None: ...

class GpuTelemetry(_message.Message):
    __slots__ = ("index", "uuid", "name", "utilization_ratio", "memory_utilization_ratio", "memory_total_bytes", "memory_used_bytes", "power_watts", "power_limit_watts", "energy_joules_total", "temperature_celsius", "sm_clock_hertz", "sm_clock_max_hertz", "memory_clock_hertz", "throttle_reasons", "knows_throttle_reasons", "xid_errors", "knows_xid_errors", "sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio", "memory_bandwidth_ratio", "xid_error_ages_s")
    class XidErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class XidErrorAgesSEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UTILIZATION_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    POWER_LIMIT_WATTS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_JOULES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    SM_CLOCK_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SM_CLOCK_MAX_HERTZ_FIELD_NUMBER: _ClassVar[int]
    MEMORY_CLOCK_HERTZ_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_REASONS_FIELD_NUMBER: _ClassVar[int]
    KNOWS_THROTTLE_REASONS_FIELD_NUMBER: _ClassVar[int]
    XID_ERRORS_FIELD_NUMBER: _ClassVar[int]
    KNOWS_XID_ERRORS_FIELD_NUMBER: _ClassVar[int]
    SM_ACTIVE_RATIO_FIELD_NUMBER: _ClassVar[int]
    SM_OCCUPANCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ACTIVE_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BANDWIDTH_RATIO_FIELD_NUMBER: _ClassVar[int]
    XID_ERROR_AGES_S_FIELD_NUMBER: _ClassVar[int]
    index: int
    uuid: str
    name: str
    utilization_ratio: float
    memory_utilization_ratio: float
    memory_total_bytes: int
    memory_used_bytes: int
    power_watts: float
    power_limit_watts: float
    energy_joules_total: float
    temperature_celsius: float
    sm_clock_hertz: float
    sm_clock_max_hertz: float
    memory_clock_hertz: float
    throttle_reasons: _containers.RepeatedScalarFieldContainer[str]
    knows_throttle_reasons: bool
    xid_errors: _containers.ScalarMap[int, int]
    knows_xid_errors: bool
    sm_active_ratio: float
    sm_occupancy_ratio: float
    tensor_active_ratio: float
    memory_bandwidth_ratio: float
    xid_error_ages_s: _containers.ScalarMap[int, float]
    def __init__(self, index: _Optional[int] = ..., uuid: _Optional[str] = ..., name: _Optional[str] = ..., utilization_ratio: _Optional[float] = ..., memory_utilization_ratio: _Optional[float] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., power_watts: _Optional[float] = ..., power_limit_watts: _Optional[float] = ..., energy_joules_total: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., sm_clock_hertz: _Optional[float] = ..., sm_clock_max_hertz: _Optional[float] = ..., memory_clock_hertz: _Optional[float] = ..., throttle_reasons: _Optional[_Iterable[str]] = ..., knows_throttle_reasons: bool = ..., xid_errors: _Optional[_Mapping[int, int]] = ..., knows_xid_errors: bool = ..., sm_active_ratio: _Optional[float] = ..., sm_occupancy_ratio: _Optional[float] = ..., tensor_active_ratio: _Optional[float] = ..., memory_bandwidth_ratio: _Optional[float] = ..., xid_error_ages_s: _Optional[_Mapping[int, float]] = ...) -> None: ...
