"""Layers and operations that cannot be part of one curve are told by name."""

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.actor.failures import job_error
from lockstep.workers.engine import Classifier, DataModule, Examples, ModelError, Trainer
from lockstep.workers.engine.audit.layers import layers_that_use, operations_told_by_name


class Images(DataModule):
    num_classes = 3

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        self.train = self.validation = Examples(torch.randn(8, 2, 8, 8, generator=random), torch.arange(8) % 3)


class Network(Classifier):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), middle, nn.Flatten(), nn.LazyLinear(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.unpool(*self.pool(inputs))
        return outputs


def train(module: Classifier) -> str:
    trainer = Trainer(max_steps=2, batch_size=4, shards=2)
    return trainer.fit(module, Images(), lambda parameters: torch.optim.SGD(parameters, lr=0.1)).weights_digest


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.SyncBatchNorm(4), "SyncBatchNorm"), (nn.DataParallel(nn.ReLU()), "DataParallel")],
    ids=["SyncBatchNorm", "DataParallel"],
)
def test_a_layer_that_would_talk_to_other_workers_is_refused_before_training(layer: nn.Module, name: str) -> None:
    with pytest.raises(ModelError, match=rf"^body.1 is a layer of torch's {name}, .*; use ") as refused:
        train(Network(layer))
    assert job_error(refused.value, 0).message == str(refused.value)


def test_layers_of_ones_own_with_such_a_name_are_ones_own() -> None:
    class DataParallel(nn.ReLU):
        pass

    assert train(Network(DataParallel()))


def test_an_operation_that_torch_refuses_is_told_with_its_layer_and_the_hint() -> None:
    with pytest.raises(ModelError) as refused:
        train(Network(Unpooled()))
    message = str(refused.value)
    assert message.startswith("torch's max_unpooling2d_forward_out, which body.1.unpool (MaxUnpool2d) uses,")
    assert "use nn.ConvTranspose" in message
    told = job_error(refused.value, 1)
    assert (told.reason, told.message, told.rank) == ("USER_ERROR", message, 1)
    assert "max_unpool2d" in told.traceback, "it shows where the model did that"


def test_what_the_engine_itself_finds_is_told_in_its_words_alone() -> None:
    class Tied(Network):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).mean()

    with pytest.raises(ModelError) as refused:
        train(Tied(nn.ReLU()))
    told = job_error(refused.value, 1)
    assert told.message == str(refused.value)
    assert told.message.startswith("loss returned a single number")
    assert (told.reason, told.rank) == ("USER_ERROR", 1)
    assert not told.traceback, "its frames are the engine's"


@pytest.mark.parametrize(
    ("kernel", "layer"),
    [
        ("adaptive_avg_pool2d_backward_cuda", nn.AdaptiveAvgPool2d(7)),
        ("adaptive_max_pool2d_backward_cuda", nn.AdaptiveMaxPool2d(7)),
        ("avg_pool3d_backward_cuda", nn.LocalResponseNorm(5)),
        ("upsample_bilinear2d_backward_out_cuda", nn.Upsample(scale_factor=2, mode="bilinear")),
        ("reflection_pad2d_backward_cuda", nn.ReflectionPad2d(1)),
        ("ctc_loss_backward_gpu", nn.CTCLoss()),
        ("embedding_bag_backward_cuda_max", nn.EmbeddingBag(3, 2, mode="max")),
        ("fractional_max_pool2d_backward_cuda", nn.FractionalMaxPool2d(2, output_size=2)),
    ],
)
def test_the_layers_of_a_gpus_kernels_are_known(kernel: str, layer: nn.Module) -> None:
    module = nn.Sequential(nn.ReLU(), layer)
    assert layers_that_use(kernel, module) == [f"1 ({type(layer).__name__})"]


def test_other_failures_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^a shape$"), operations_told_by_name(nn.ReLU()):
        raise RuntimeError("a shape")
