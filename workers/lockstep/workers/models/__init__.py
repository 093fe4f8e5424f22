"""The models that a spec can name."""

import torch

from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.engine import DataError, DataModule, Module, initialisation_seed
from lockstep.workers.models.lenet import SMALLEST_IMAGE, LeNet
from lockstep.workers.models.linear import LinearRegression, SoftmaxRegression
from lockstep.workers.models.mlp import MlpClassifier, MlpRegressor

__all__ = ["build_model"]


def build_model(spec: ModelSpec, data: DataModule, seed: int) -> Module:
    """The model of a resolved spec, shaped for `data`, with initial weights drawn from `seed`.

    Raises:
        DataError: the model cannot be trained on this data.
    """
    torch.default_generator.manual_seed(initialisation_seed(seed))
    kind = spec.WhichOneof("kind")
    features = int(torch.Size(data.input_shape).numel())
    if kind == "linear_regression":
        _expect(data.num_classes is None, kind, "needs numbers as labels, but the data has classes")
        return LinearRegression(features)
    if kind == "mlp":
        options = (features, tuple(spec.mlp.hidden_units), spec.mlp.activation, tuple(spec.mlp.dropout))
        return MlpRegressor(*options) if data.num_classes is None else MlpClassifier(*options, data.num_classes)
    if data.num_classes is None:
        raise DataError(f"model.{kind}", f"{kind} needs classes as labels, but the data has numbers")
    if kind == "softmax_regression":
        return SoftmaxRegression(features, data.num_classes)
    shape = data.input_shape
    _expect(
        len(shape) == 3 and min(shape[1:]) >= SMALLEST_IMAGE,
        "lenet",
        f"needs images of at least {SMALLEST_IMAGE} by {SMALLEST_IMAGE} pixels, "
        f"but an example has the shape {' by '.join(map(str, shape))}",
    )
    return LeNet(shape, spec.lenet.activation, spec.lenet.pooling, data.num_classes)


def _expect(fits: bool, kind: str, message: str) -> None:
    if not fits:
        raise DataError(f"model.{kind}", f"{kind} {message}")
