from lockstep.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataSpec(_message.Message):
    __slots__ = ("synthetic_regression", "builtin", "idx")
    SYNTHETIC_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    IDX_FIELD_NUMBER: _ClassVar[int]
    synthetic_regression: SyntheticRegressionData
    builtin: BuiltinData
    idx: IdxData
    def __init__(self, synthetic_regression: _Optional[_Union[SyntheticRegressionData, _Mapping]] = ..., builtin: _Optional[_Union[BuiltinData, _Mapping]] = ..., idx: _Optional[_Union[IdxData, _Mapping]] = ...) -> None: ...

class SyntheticRegressionData(_message.Message):
    __slots__ = ("w", "b", "noise", "train_size", "validation_size", "seed")
    W_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    w: _containers.RepeatedScalarFieldContainer[float]
    b: float
    noise: float
    train_size: int
    validation_size: int
    seed: int
    def __init__(self, w: _Optional[_Iterable[float]] = ..., b: _Optional[float] = ..., noise: _Optional[float] = ..., train_size: _Optional[int] = ..., validation_size: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class BuiltinData(_message.Message):
    __slots__ = ("name", "validation_fraction", "seed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    validation_fraction: float
    seed: int
    def __init__(self, name: _Optional[str] = ..., validation_fraction: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class IdxData(_message.Message):
    __slots__ = ("root", "standardize")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    STANDARDIZE_FIELD_NUMBER: _ClassVar[int]
    root: str
    standardize: bool
    def __init__(self, root: _Optional[str] = ..., standardize: bool = ...) -> None: ...
