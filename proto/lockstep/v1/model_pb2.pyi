from lockstep.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelSpec(_message.Message):
    __slots__ = ("linear_regression", "softmax_regression", "mlp", "lenet")
    LINEAR_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    SOFTMAX_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    MLP_FIELD_NUMBER: _ClassVar[int]
    LENET_FIELD_NUMBER: _ClassVar[int]
    linear_regression: LinearRegressionModel
    softmax_regression: SoftmaxRegressionModel
    mlp: MlpModel
    lenet: LenetModel
    def __init__(self, linear_regression: _Optional[_Union[LinearRegressionModel, _Mapping]] = ..., softmax_regression: _Optional[_Union[SoftmaxRegressionModel, _Mapping]] = ..., mlp: _Optional[_Union[MlpModel, _Mapping]] = ..., lenet: _Optional[_Union[LenetModel, _Mapping]] = ...) -> None: ...

class LinearRegressionModel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SoftmaxRegressionModel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MlpModel(_message.Message):
    __slots__ = ("hidden_units", "activation", "dropout")
    HIDDEN_UNITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    hidden_units: _containers.RepeatedScalarFieldContainer[int]
    activation: str
    dropout: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, hidden_units: _Optional[_Iterable[int]] = ..., activation: _Optional[str] = ..., dropout: _Optional[_Iterable[float]] = ...) -> None: ...

class LenetModel(_message.Message):
    __slots__ = ("activation", "pooling", "batch_norm")
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    BATCH_NORM_FIELD_NUMBER: _ClassVar[int]
    activation: str
    pooling: str
    batch_norm: bool
    def __init__(self, activation: _Optional[str] = ..., pooling: _Optional[str] = ..., batch_norm: bool = ...) -> None: ...
