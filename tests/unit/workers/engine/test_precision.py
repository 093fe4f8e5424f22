"""What is computed in which precision, and what is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import (
    Classifier,
    DataModule,
    Examples,
    Listener,
    ModelError,
    Origin,
    Regressor,
    Result,
    Trainer,
)
from lockstep.workers.engine.flops import flops_per_step
from lockstep.workers.engine.precision import Precision
from lockstep.workers.engine.randomness import Settings
from lockstep.workers.engine.state.checkpoint import Checkpoints
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


@dataclass
class Answer:
    """Outputs in a container of the user's own."""

    value: Tensor


class InAContainer(Convolutions):
    def forward(self, inputs: Tensor) -> Any:
        return Answer(super().forward(inputs))

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().loss(outputs.value, targets)

    def count_correct(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().count_correct(outputs.value, targets)


def test_outputs_that_are_not_found_are_told_before_losses_are_added_in_bfloat16() -> None:
    fit(InAContainer(), Images())
    with pytest.raises(ModelError, match=r"loss returned bfloat16, .* have forward return a tensor, or a tuple"):
        fit(InAContainer(), Images(), precision="bf16")


class Named(Images):
    """Images with a number each."""

    def transform(self, inputs: Tensor) -> Any:
        return {"image": inputs, "number": (inputs[:, 0, 0, 0], None)}


class OfNamed(Convolutions):
    def forward(self, inputs: Any) -> Tensor:
        return super().forward(inputs["image"]) + inputs["number"][0][:, None]


def test_inputs_may_be_more_than_a_tensor() -> None:
    module = OfNamed()
    fit(module, Named(), precision="bf16", memory_format="channels_last")
    assert all(module.channels_last)
    settings = Settings(16, 2, 0, None, BF16)
    of_images, of_named = (
        flops_per_step(module, data.take(data.train, slice(0, 2)), settings)
        for module, data in ((convolutions_trained("contiguous"), Images()), (module, Named()))
    )
    assert of_images == of_named > 0


class Shares(Convolutions):
    """Has a buffer under two names, volumes and what is no layer."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(1, 3, 3, 3))
        self.body.register_buffer("kernel", self.kernel)
        self.same = self.kernel
        self.volumes = nn.Conv3d(1, 1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + self.volumes(inputs[:, None]).mean((1, 2, 3, 4))[:, None]


def test_only_weights_of_convolutions_are_laid_out() -> None:
    module = Shares()
    fit(module, Images(), memory_format="channels_last")
    assert module.kernel is module.same is module.body.kernel


def test_training_inside_of_autocast_is_refused() -> None:
    refused = pytest.raises(ValueError, match=r"fit was called inside of torch\.autocast")
    with torch.autocast("cpu", torch.bfloat16), refused:
        fit(Numbers(), Points())


def two_groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer over each parameter by itself, whose kernel reads memory as it lies."""
    decayed, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


def trained(folder: Path, steps: int, optimizer: Any, memory_format: str = "channels_last") -> tuple[str, list[str]]:
    """Digest of the weights after so many steps from the newest checkpoint, and what is told."""
    torch.manual_seed(0)
    trainer = Trainer(max_steps=steps, batch_size=16, shards=2, memory_format=memory_format, audit="off")
    notes = Notes()
    origin = Origin(Checkpoints(str(folder)), every_steps=1000)
    result = trainer.fit(Convolutions(), Images(), optimizer, origin=origin, listener=notes)
    return result.weights_digest, notes.told


class Notes(Listener):
    def __init__(self) -> None:
        self.told: list[str] = []

    def noted(self, words: str) -> None:
        self.told.append(words)


@pytest.mark.parametrize("optimizer", [two_groups, sgd])
def test_what_an_optimizer_keeps_lies_after_a_checkpoint_as_before(tmp_path: Path, optimizer: Any) -> None:
    undisturbed, _ = trained(tmp_path / "a", 8, optimizer)
    trained(tmp_path / "b", 4, optimizer)
    assert trained(tmp_path / "b", 8, optimizer) == (undisturbed, ["going on from the checkpoint of step 4"])


def test_no_run_goes_on_with_weights_in_another_order(tmp_path: Path) -> None:
    afresh, _ = trained(tmp_path / "a", 8, sgd, "contiguous")
    trained(tmp_path / "b", 4, sgd, "channels_last")
    digest, told = trained(tmp_path / "b", 8, sgd, "contiguous")
    assert digest == afresh
    assert told == [
        "the checkpoint of step 4 cannot be used: its weights lay in another order in memory; go on with the "
        "memory_format that it had"
    ]


def settings_that_are_wrong() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"precision": "fp16"}, "precision is 'fp16'; allowed: 'fp32', 'tf32', 'bf16'"
    yield {"memory_format": "nhwc"}, "memory_format is 'nhwc'; allowed: 'contiguous', 'channels_last'"
    yield {"precision": "tf32"}, "precision is 'tf32', in which GPUs compute alone; allowed on a CPU: 'fp32', 'bf16'"


@pytest.mark.parametrize(("settings", "words"), list(settings_that_are_wrong()))
def test_what_a_trainer_does_not_know_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(Numbers(), Points(), **settings)
