"""Multilayer perceptrons (D2L chapter 5)."""

from torch import Tensor, nn

from lockstep.v1.job_spec_pb2 import MlpModel
from lockstep.workers.engine import Classifier, DataModule, Module, Regressor
from lockstep.workers.models.fit import features_of
from lockstep.workers.models.layers import ACTIVATIONS
from lockstep.workers.models.registry import builds


def _layers(
    features: int, hidden_units: tuple[int, ...], activation: str, dropout: tuple[float, ...], outputs: int
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for units, probability in zip(hidden_units, dropout or (0.0,) * len(hidden_units), strict=True):
        layers += [nn.Linear(features, units), ACTIVATIONS[activation]()]
        if probability > 0:
            layers.append(nn.Dropout(probability))
        features = units
    return nn.Sequential(*layers, nn.Linear(features, outputs))


class MlpClassifier(Classifier):
    """Fully connected layers with an activation and dropout after each but the last; torch's default initialisation.

    Args:
        features: number of inputs of an example.
        hidden_units: width of each hidden layer.
        activation: "relu", "sigmoid" or "tanh".
        dropout: probability after each hidden layer, or empty.
        classes: number of classes.
    """

    def __init__(
        self, features: int, hidden_units: tuple[int, ...], activation: str, dropout: tuple[float, ...], classes: int
    ) -> None:
        super().__init__()
        self.net = _layers(features, hidden_units, activation, dropout, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (n, ...) to scores (n, classes)."""
        return self.net(inputs)  # type: ignore[no-any-return]


class MlpRegressor(Regressor):
    """The same layers with one output, for numbers; see MlpClassifier for the arguments."""

    def __init__(
        self, features: int, hidden_units: tuple[int, ...], activation: str, dropout: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.net = _layers(features, hidden_units, activation, dropout, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (n, ...) to predictions (n, 1)."""
        return self.net(inputs)  # type: ignore[no-any-return]


@builds("mlp")
def build(spec: MlpModel, data: DataModule) -> Module:
    options = (features_of(data), tuple(spec.hidden_units), spec.activation, tuple(spec.dropout))
    return MlpRegressor(*options) if data.num_classes is None else MlpClassifier(*options, data.num_classes)
