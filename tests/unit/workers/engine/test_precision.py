"""What is computed in which precision, and what is not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Classifier, DataModule, Examples, Regressor, Result, Trainer
from lockstep.workers.engine.precision import Precision
from tests.support.honest_models import Numbers, Points, sgd

BF16 = Precision("bf16")


class Images(DataModule):
    """Noise with classes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        inputs, targets = torch.randn(48, 3, 8, 8, generator=generator), torch.arange(48) % 5
        self.train, self.validation = Examples(inputs[:32], targets[:32]), Examples(inputs[32:], targets[32:])


class Convolutions(Classifier):
    """Convolutions whose weights get their shapes from the first images; keeps the strides that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
        self.head = nn.LazyLinear(5)
        self.channels_last: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.channels_last.append(inputs.is_contiguous(memory_format=torch.channels_last))
        outputs: Tensor = self.head(self.body(inputs))
        return outputs


def fit(module: Any, data: DataModule, **settings: Any) -> Result:
    trainer = Trainer(max_steps=4, batch_size=16, shards=2, log_every_steps=1, audit="off", **settings)
    return trainer.fit(module, data, sgd)


class Watched(Numbers):
    """Keeps the precisions of what its layers and its loss are given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: set[torch.dtype] = set()
        self.outer: set[torch.dtype] = set()
        self.body[2].register_forward_pre_hook(lambda layer, inputs: self.inner.add(inputs[0].dtype))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.outer.add(outputs.dtype)
        return super().loss(outputs, targets)


@pytest.mark.parametrize(("precision", "inside"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_layers_compute_in_it_and_parameters_losses_and_gradients_in_float32(
    precision: str, inside: torch.dtype
) -> None:
    module = Watched()
    fit(module, Points(), precision=precision)
    assert (module.inner, module.outer) == ({inside}, {torch.float32})
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_is_another_curve_close_by_which_repeats() -> None:
    exact, *rounded = (curve_of(precision) for precision in ("fp32", "bf16", "bf16"))
    assert rounded[0] == rounded[1]
    assert exact.weights_digest != rounded[0].weights_digest
    losses = [run.final_metrics["train_loss"] for run in (exact, rounded[0])]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def curve_of(precision: str) -> Result:
    torch.manual_seed(0)
    return fit(Numbers(), Points(), precision=precision)


def convolutions_trained(memory_format: str) -> Convolutions:
    torch.manual_seed(0)
    module = Convolutions()
    fit(module, Images(), memory_format=memory_format)
    return module


def test_images_and_weights_lie_channels_last_and_the_weights_are_the_same_file() -> None:
    plain, ordered = (convolutions_trained(memory_format) for memory_format in ("contiguous", "channels_last"))
    weights = ordered.get_parameter("body.3.weight")
    assert weights.is_contiguous(memory_format=torch.channels_last)
    assert not weights.is_contiguous()
    # The run that finds out the shapes of the weights comes before they are laid out.
    assert not any(plain.channels_last)
    assert all(ordered.channels_last)
    for one, other in zip(plain.parameters(), ordered.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class Two(Regressor):
    """Has outputs of several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.layer(inputs)
        return {"value": outputs[:, :1], "spread": (outputs[:, 1:], None)}


def test_each_of_several_outputs_comes_in_float32() -> None:
    outputs = BF16.outputs(Two(), torch.randn(3, 8))
    assert outputs["value"].dtype == outputs["spread"][0].dtype == torch.float32
    assert outputs["spread"][1] is None


def settings_that_are_wrong() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"precision": "fp16"}, "precision is 'fp16'; allowed: 'fp32', 'tf32', 'bf16'"
    yield {"memory_format": "nhwc"}, "memory_format is 'nhwc'; allowed: 'contiguous', 'channels_last'"
    yield {"precision": "tf32"}, "precision is 'tf32', in which GPUs compute alone; allowed on a CPU: 'fp32', 'bf16'"


@pytest.mark.parametrize(("settings", "words"), list(settings_that_are_wrong()))
def test_what_a_trainer_does_not_know_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(Numbers(), Points(), **settings)
