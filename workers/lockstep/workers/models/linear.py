"""Linear models: linear regression (D2L chapter 3) and softmax regression (D2L chapter 4)."""

from torch import Tensor, nn

from lockstep.v1.job_spec_pb2 import LinearRegressionModel, SoftmaxRegressionModel
from lockstep.workers.engine import Classifier, DataModule, Module, Regressor
from lockstep.workers.models.fit import classes_of, expect_numbers, features_of
from lockstep.workers.models.registry import builds

INITIAL_DEVIATION = 0.01
"""Standard deviation of the initial weights of linear models, as in D2L."""


def _linear(features: int, outputs: int) -> nn.Sequential:
    layer = nn.Linear(features, outputs)
    nn.init.normal_(layer.weight, std=INITIAL_DEVIATION)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)


class LinearRegression(Regressor):
    """y = Xw + b.

    Args:
        features: number of inputs of an example.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = _linear(features, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (n, ...) to predictions (n, 1)."""
        return self.net(inputs)  # type: ignore[no-any-return]


class SoftmaxRegression(Classifier):
    """Scores XW + b, of which the loss takes the softmax.

    Args:
        features: number of inputs of an example.
        classes: number of classes.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.net = _linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (n, ...) to scores (n, classes)."""
        return self.net(inputs)  # type: ignore[no-any-return]


@builds("linear_regression")
def build_linear_regression(spec: LinearRegressionModel, data: DataModule) -> Module:
    expect_numbers(data, "linear_regression")
    return LinearRegression(features_of(data))


@builds("softmax_regression")
def build_softmax_regression(spec: SoftmaxRegressionModel, data: DataModule) -> Module:
    classes = classes_of(data, "softmax_regression")
    return SoftmaxRegression(features_of(data), classes)
