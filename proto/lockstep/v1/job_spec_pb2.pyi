from lockstep.v1 import data_pb2 as _data_pb2
from lockstep.v1 import model_pb2 as _model_pb2
from lockstep.v1 import optimizer_pb2 as _optimizer_pb2
from lockstep.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union
from lockstep.v1.data_pb2 import DataSpec as DataSpec
from lockstep.v1.data_pb2 import SyntheticRegressionData as SyntheticRegressionData
from lockstep.v1.data_pb2 import BuiltinData as BuiltinData
from lockstep.v1.data_pb2 import IdxData as IdxData
from lockstep.v1.model_pb2 import ModelSpec as ModelSpec
from lockstep.v1.model_pb2 import LinearRegressionModel as LinearRegressionModel
from lockstep.v1.model_pb2 import SoftmaxRegressionModel as SoftmaxRegressionModel
from lockstep.v1.model_pb2 import MlpModel as MlpModel
from lockstep.v1.model_pb2 import LenetModel as LenetModel
from lockstep.v1.optimizer_pb2 import OptimizerSpec as OptimizerSpec
from lockstep.v1.optimizer_pb2 import SgdOptimizer as SgdOptimizer
from lockstep.v1.optimizer_pb2 import AdamwOptimizer as AdamwOptimizer

DESCRIPTOR: _descriptor.FileDescriptor

class JobSpec(_message.Message):
    __slots__ = ("name", "model", "data", "optimizer", "training", "resources", "recovery", "labels", "init_from")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INIT_FROM_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: _model_pb2.ModelSpec
    data: _data_pb2.DataSpec
    optimizer: _optimizer_pb2.OptimizerSpec
    training: TrainingSpec
    resources: ResourcesSpec
    recovery: RecoverySpec
    labels: _containers.ScalarMap[str, str]
    init_from: InitFromSpec
    def __init__(self, name: _Optional[str] = ..., model: _Optional[_Union[_model_pb2.ModelSpec, _Mapping]] = ..., data: _Optional[_Union[_data_pb2.DataSpec, _Mapping]] = ..., optimizer: _Optional[_Union[_optimizer_pb2.OptimizerSpec, _Mapping]] = ..., training: _Optional[_Union[TrainingSpec, _Mapping]] = ..., resources: _Optional[_Union[ResourcesSpec, _Mapping]] = ..., recovery: _Optional[_Union[RecoverySpec, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., init_from: _Optional[_Union[InitFromSpec, _Mapping]] = ...) -> None: ...

class InitFromSpec(_message.Message):
    __slots__ = ("job_id", "step", "uri")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    uri: str
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ..., uri: _Optional[str] = ...) -> None: ...

class TrainingSpec(_message.Message):
    __slots__ = ("max_epochs", "max_steps", "batch_size", "seed", "gradient_clip_norm", "log_every_steps", "evaluate_every_steps", "audit", "precision", "memory_format")
    MAX_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    LOG_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FORMAT_FIELD_NUMBER: _ClassVar[int]
    max_epochs: int
    max_steps: int
    batch_size: int
    seed: int
    gradient_clip_norm: float
    log_every_steps: int
    evaluate_every_steps: int
    audit: str
    precision: str
    memory_format: str
    def __init__(self, max_epochs: _Optional[int] = ..., max_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., gradient_clip_norm: _Optional[float] = ..., log_every_steps: _Optional[int] = ..., evaluate_every_steps: _Optional[int] = ..., audit: _Optional[str] = ..., precision: _Optional[str] = ..., memory_format: _Optional[str] = ...) -> None: ...

class ResourcesSpec(_message.Message):
    __slots__ = ("workers", "shards", "cpus_per_worker", "gpus_per_worker", "min_workers", "gpu_share")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    GPU_SHARE_FIELD_NUMBER: _ClassVar[int]
    workers: int
    shards: int
    cpus_per_worker: float
    gpus_per_worker: int
    min_workers: int
    gpu_share: float
    def __init__(self, workers: _Optional[int] = ..., shards: _Optional[int] = ..., cpus_per_worker: _Optional[float] = ..., gpus_per_worker: _Optional[int] = ..., min_workers: _Optional[int] = ..., gpu_share: _Optional[float] = ...) -> None: ...

class RecoverySpec(_message.Message):
    __slots__ = ("max_restarts", "checkpoint_every_steps", "keep_checkpoints", "checkpoint_uri", "hang_timeout_s")
    MAX_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    KEEP_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    HANG_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    max_restarts: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    checkpoint_uri: str
    hang_timeout_s: float
    def __init__(self, max_restarts: _Optional[int] = ..., checkpoint_every_steps: _Optional[int] = ..., keep_checkpoints: _Optional[int] = ..., checkpoint_uri: _Optional[str] = ..., hang_timeout_s: _Optional[float] = ...) -> None: ...
