"""The promise itself: metrics and weights are the same bits on any number of workers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from torch import Tensor, nn

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Classifier, DataModule, Examples, Group, Listener, Point, Progress, Trainer
from lockstep.workers.engine.exchange.reduce import ChunkExchange, Exchange, ShardSums, SwapExchange, padded
from lockstep.workers.engine.exchange.shards import Placement, root, tree_sum
from lockstep.workers.training import train

SGD = {"sgd": {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.001}}
DIGITS = {"builtin": {"name": "digits", "validation_fraction": 0.2}}
SYNTHETIC = {
    "synthetic_regression": {"w": [2, -3.4], "b": 4.2, "noise": 0.01, "train_size": 1000, "validation_size": 1000}
}


class Recorder(Listener):
    """Keeps the points that depend on the spec alone."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]


def train_spec(group: Group, spec: dict[str, Any]) -> tuple[str, list[Point]]:
    recorder = Recorder()
    result = train(json_format.ParseDict(spec, JobSpec()), group, recorder)
    return result.weights_digest, recorder.points


def spec_of(model: dict[str, Any], data: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "model": model,
        "data": data,
        "optimizer": SGD,
        "training": {"max_epochs": 2, "batch_size": 100, "seed": 7, "log_every_steps": 4} | training,
        "resources": {"shards": 4, "cpus_per_worker": 1},
    }


def mnist_spec(root: Any, model: dict[str, Any], **training: Any) -> dict[str, Any]:
    # Steps of 999 reach neither the end of the epoch nor an even cut into 4 shards.
    options = {"max_epochs": None, "max_steps": 6, "batch_size": 999, "evaluate_every_steps": 4} | training
    spec = spec_of(model, {"idx": {"root": str(root)}}, **options)
    spec["training"] = {key: value for key, value in spec["training"].items() if value is not None}
    return spec


def curves(ranks: Any, spec: dict[str, Any], world_sizes: Any = (1, 2, 3, 4)) -> list[tuple[str, list[Point]]]:
    """What every rank of every number of workers saw."""
    return [curve for world_size in world_sizes for curve in ranks.run(world_size, train_spec, spec)]


def assert_one_curve(seen: list[Any]) -> None:
    digest, points = seen[0]
    assert points
    for other_digest, other_points in seen[1:]:
        assert other_points == points
        assert other_digest == digest


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"linear_regression": {}}, SYNTHETIC),
        ({"softmax_regression": {}}, DIGITS),
        ({"mlp": {"hidden_units": [64, 32], "activation": "relu", "dropout": [0.5, 0.2]}}, DIGITS),
        (
            {"mlp": {"hidden_units": [16], "activation": "tanh"}},
            {"builtin": {"name": "diabetes", "validation_fraction": 0.2}},
        ),
    ],
    ids=["linear_regression", "softmax_regression", "mlp with dropout", "mlp on numbers"],
)
def test_any_number_of_workers_gives_the_same_bits(ranks: Any, model: dict[str, Any], data: dict[str, Any]) -> None:
    assert_one_curve(curves(ranks, spec_of(model, data)))


def test_adamw_gives_the_same_bits_on_any_number_of_workers(ranks: Any) -> None:
    spec = spec_of({"mlp": {"hidden_units": [64], "activation": "relu", "dropout": [0.5]}}, DIGITS)
    adamw = {"learning_rate": 0.002, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
    assert_one_curve(curves(ranks, spec | {"optimizer": {"adamw": adamw}}))


def test_lenet_on_mnist_gives_the_same_bits_on_any_number_of_workers(ranks: Any, first_of_mnist: Any) -> None:
    assert_one_curve(curves(ranks, mnist_spec(first_of_mnist, {"lenet": {"activation": "sigmoid", "pooling": "avg"}})))


def test_lenet_with_batch_normalization_gives_the_same_bits_on_any_number_of_workers(
    ranks: Any, first_of_mnist: Any
) -> None:
    model = {"lenet": {"activation": "sigmoid", "pooling": "avg", "batch_norm": True}}
    assert_one_curve(curves(ranks, mnist_spec(first_of_mnist, model, max_steps=4)))


@pytest.mark.parametrize(
    ("precision", "memory_format"), [("bf16", "contiguous"), ("bf16", "channels_last"), ("fp32", "channels_last")]
)
def test_every_precision_and_order_in_memory_gives_the_same_bits(
    ranks: Any, first_of_mnist: Any, precision: str, memory_format: str
) -> None:
    model = {"lenet": {"activation": "relu", "pooling": "max", "batch_norm": True}}
    spec = mnist_spec(first_of_mnist, model, max_steps=3, batch_size=250, precision=precision)
    spec["training"]["memory_format"] = memory_format
    assert_one_curve(curves(ranks, spec, [1, 3]))


def test_a_large_mlp_on_mnist_gives_the_same_bits_through_all_exchanges(ranks: Any, first_of_mnist: Any) -> None:
    model = {"mlp": {"hidden_units": [512, 512], "activation": "relu"}}
    assert_one_curve(curves(ranks, mnist_spec(first_of_mnist, model, max_steps=4)))


def test_clipping_by_the_global_norm_gives_the_same_bits(ranks: Any) -> None:
    spec = spec_of({"softmax_regression": {}}, DIGITS, gradient_clip_norm=0.1)
    assert_one_curve(curves(ranks, spec))
    assert curves(ranks, spec, [1])[0][0] != curves(ranks, spec_of({"softmax_regression": {}}, DIGITS), [1])[0][0]


@pytest.mark.parametrize("shards", [5, 6, 8])
def test_shard_numbers_that_are_no_power_of_two_give_the_same_bits(ranks: Any, shards: int) -> None:
    spec = spec_of({"mlp": {"hidden_units": [20], "activation": "sigmoid"}}, DIGITS, max_epochs=1)
    spec["resources"]["shards"] = shards
    assert_one_curve(curves(ranks, spec))


def test_another_seed_gives_another_curve(ranks: Any) -> None:
    model: dict[str, Any] = {"softmax_regression": {}}
    one, other = (curves(ranks, spec_of(model, DIGITS, seed=seed), [1])[0] for seed in (1, 2))
    assert one[0] != other[0]
    assert one[1] != other[1]


class ImageNet(Classifier):
    """Convolution, batch normalisation, dropout: everything that keeps state or draws at random."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(10)
        )
        self.register_buffer("mask", torch.full((10,), -torch.inf))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


class RandomImages(DataModule):
    num_classes = 10

    def __init__(self, train_size: int) -> None:
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(train_size + 50, 1, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (train_size + 50,), generator=generator)
        self.train = Examples(images[50:], labels[50:])
        self.validation = Examples(images[:50], labels[:50])


def train_images(group: Group, shards: int) -> tuple[str, list[Point], int, bool]:
    torch.manual_seed(1)
    module, recorder = ImageNet(), Recorder()
    # The last minibatch of an epoch has 8 examples, which batch normalisation allows to cut into at most 4 shards.
    trainer = Trainer(max_epochs=2, batch_size=96, shards=shards, seed=7, log_every_steps=1)
    result = trainer.fit(
        module,
        RandomImages(200),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        group=group,
        listener=recorder,
    )
    counter, mask = module.get_buffer("body.1.num_batches_tracked"), module.mask
    return result.weights_digest, recorder.points, int(counter), bool(torch.isneginf(mask).all())


@pytest.mark.parametrize("shards", [4, 5, 6])
def test_batch_normalisation_and_dropout_give_the_same_bits(ranks: Any, shards: int) -> None:
    seen = [result for world_size in (1, 2, 3, 4) for result in ranks.run(world_size, train_images, shards)]
    assert len({digest for digest, *_ in seen}) == 1
    assert all(points == seen[0][1] for _, points, *_ in seen)
    assert {counter for *_, counter, _ in seen} == {6}, "batch normalisation counts one batch a step"
    assert all(is_whole for *_, is_whole in seen), "a buffer that nothing changes stays as it is"


def exchange_random_pieces(group: Group, shards: int, kind: Callable[..., Exchange]) -> bool:
    """Whether the total is, bit for bit, the tree sum over all shards."""
    placement = Placement.deal(shards, group.world_size)
    width = padded(1000, group.world_size)
    values = (
        torch.randn(shards, width, generator=torch.Generator().manual_seed(5)) * 10.0 ** torch.arange(shards)[:, None]
    )
    sums = ShardSums(placement, group.rank, width, torch.float32, torch.device("cpu"))
    exchange = kind(placement, group, sums)
    expected = tree_sum(root(shards), shards, lambda node: values[node.position].clone() if node.level == 0 else None)
    for _ in range(2):  # twice, since buffers are used again
        for shard in sums.each():
            sums.accumulator.add_(values[shard])
        if not torch.equal(exchange.total(), expected):
            return False
    return True


@pytest.mark.parametrize("kind", [SwapExchange, ChunkExchange, partial(ChunkExchange, bucket_bytes=1000)])
@pytest.mark.parametrize(("world_size", "shards"), [(2, 2), (2, 6), (3, 3), (3, 4), (3, 8), (4, 4), (4, 7), (4, 13)])
def test_every_exchange_sums_in_tree_order(
    ranks: Any, kind: Callable[..., Exchange], world_size: int, shards: int
) -> None:
    assert all(ranks.run(world_size, exchange_random_pieces, shards, kind))
