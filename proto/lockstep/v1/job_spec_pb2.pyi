from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

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
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    training: TrainingSpec
    resources: ResourcesSpec
    recovery: RecoverySpec
    labels: _containers.ScalarMap[str, str]
    init_from: InitFromSpec
    def __init__(self, name: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., data: _Optional[_Union[DataSpec, _Mapping]] = ..., optimizer: _Optional[_Union[OptimizerSpec, _Mapping]] = ..., training: _Optional[_Union[TrainingSpec, _Mapping]] = ..., resources: _Optional[_Union[ResourcesSpec, _Mapping]] = ..., recovery: _Optional[_Union[RecoverySpec, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., init_from: _Optional[_Union[InitFromSpec, _Mapping]] = ...) -> None: ...

class InitFromSpec(_message.Message):
    __slots__ = ("job_id", "step", "uri")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    uri: str
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ..., uri: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("activation", "pooling")
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    activation: str
    pooling: str
    def __init__(self, activation: _Optional[str] = ..., pooling: _Optional[str] = ...) -> None: ...

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

class OptimizerSpec(_message.Message):
    __slots__ = ("sgd",)
    SGD_FIELD_NUMBER: _ClassVar[int]
    sgd: SgdOptimizer
    def __init__(self, sgd: _Optional[_Union[SgdOptimizer, _Mapping]] = ...) -> None: ...

class SgdOptimizer(_message.Message):
    __slots__ = ("learning_rate", "momentum", "nesterov", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    NESTEROV_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., nesterov: bool = ..., weight_decay: _Optional[float] = ...) -> None: ...

class TrainingSpec(_message.Message):
    __slots__ = ("max_epochs", "max_steps", "batch_size", "seed", "gradient_clip_norm", "log_every_steps", "evaluate_every_steps", "audit")
    MAX_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    LOG_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    max_epochs: int
    max_steps: int
    batch_size: int
    seed: int
    gradient_clip_norm: float
    log_every_steps: int
    evaluate_every_steps: int
    audit: str
    def __init__(self, max_epochs: _Optional[int] = ..., max_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., gradient_clip_norm: _Optional[float] = ..., log_every_steps: _Optional[int] = ..., evaluate_every_steps: _Optional[int] = ..., audit: _Optional[str] = ...) -> None: ...

class ResourcesSpec(_message.Message):
    __slots__ = ("workers", "shards", "cpus_per_worker", "gpus_per_worker", "min_workers")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    CPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: int
    shards: int
    cpus_per_worker: float
    gpus_per_worker: int
    min_workers: int
    def __init__(self, workers: _Optional[int] = ..., shards: _Optional[int] = ..., cpus_per_worker: _Optional[float] = ..., gpus_per_worker: _Optional[int] = ..., min_workers: _Optional[int] = ...) -> None: ...

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
