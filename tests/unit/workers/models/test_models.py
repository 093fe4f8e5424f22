"""The models, and the data that each of them fits."""

from typing import Any

import pytest
import torch
from torch import nn

from lockstep.v1.job_spec_pb2 import ModelSpec
from lockstep.workers.engine import DataError, DataModule, Examples
from lockstep.workers.models import build_model


class Shaped(DataModule):
    def __init__(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        self.num_classes = num_classes
        targets = torch.zeros(2, 1) if num_classes is None else torch.zeros(2, dtype=torch.int64)
        self.train = self.validation = Examples(torch.randn(2, *shape), targets)


FLAT_IMAGES = Shaped((1, 11, 28), 2)
IMAGES, TABLE, NUMBERS = Shaped((1, 28, 28), 10), Shaped((4,), 3), Shaped((4,), None)


@pytest.mark.parametrize(
    ("spec", "data", "outputs"),
    [
        (ModelSpec(linear_regression={}), NUMBERS, 1),
        (ModelSpec(softmax_regression={}), TABLE, 3),
        (ModelSpec(softmax_regression={}), IMAGES, 10),
        (ModelSpec(mlp={"hidden_units": [8, 7], "activation": "tanh", "dropout": [0.5, 0.0]}), IMAGES, 10),
        (ModelSpec(mlp={"hidden_units": [8], "activation": "relu"}), NUMBERS, 1),
        (ModelSpec(lenet={"activation": "sigmoid", "pooling": "avg"}), IMAGES, 10),
        (ModelSpec(lenet={"activation": "relu", "pooling": "max"}), Shaped((3, 12, 15), 5), 5),
    ],
)
def test_a_model_takes_its_shape_from_the_data(spec: ModelSpec, data: DataModule, outputs: int) -> None:
    module = build_model(spec, data, seed=0)
    predictions = module(data.train.inputs)
    assert predictions.shape == (2, outputs)
    assert module.loss(predictions, data.train.targets).shape == (2,)


@pytest.mark.parametrize(
    ("spec", "data", "field", "words"),
    [
        (ModelSpec(linear_regression={}), TABLE, "model.linear_regression", "needs numbers as labels"),
        (ModelSpec(softmax_regression={}), NUMBERS, "model.softmax_regression", "needs classes as labels"),
        (ModelSpec(lenet={}), NUMBERS, "model.lenet", "needs classes as labels"),
        (ModelSpec(lenet={"activation": "relu", "pooling": "avg"}), TABLE, "model.lenet", "has the shape 4"),
        (
            ModelSpec(lenet={"activation": "relu", "pooling": "avg"}),
            Shaped((1, 11, 28), 2),
            "model.lenet",
            "1 by 11 by 28",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_named(spec: ModelSpec, data: DataModule, field: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        build_model(spec, data, seed=0)
    assert caught.value.field == field


def test_the_seed_alone_decides_the_initial_weights() -> None:
    spec = ModelSpec(mlp={"hidden_units": [8], "activation": "relu"})
    weights = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        net: Any = build_model(spec, TABLE, seed).net
        weights.append(net[1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lenet_normalizes_before_each_activation_where_that_is_asked() -> None:
    module = build_model(ModelSpec(lenet={"activation": "tanh", "pooling": "avg", "batch_norm": True}), IMAGES, 0)
    net = module.net
    assert isinstance(net, nn.Sequential)
    layers = [type(layer) for layer in net]
    assert [layers[place - 1] for place, layer in enumerate(layers) if layer is nn.Tanh] == [
        nn.BatchNorm2d,
        nn.BatchNorm2d,
        nn.BatchNorm1d,
        nn.BatchNorm1d,
    ]


def test_lenet_has_the_parameters_of_the_book() -> None:
    module = build_model(ModelSpec(lenet={"activation": "sigmoid", "pooling": "avg"}), IMAGES, 0)
    assert sum(parameter.numel() for parameter in module.parameters()) == 61_706
