"""Forms of layers that torch computes on a GPU with other bits each time: the numbers of torch's own."""

import copy
import io
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine.deterministic_layers import use_deterministic_forms

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SIZES: tuple[Any, ...] = (1, 3, 7, (5, 2), (None, 3))
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{
        f"windows of {lengths} to {size}": (nn.AdaptiveAvgPool2d(size), (2, 3, *lengths))
        for lengths, size in product(((6, 6), (7, 10), (1, 1), (13, 5)), SIZES)
    },
    "a line": (nn.AdaptiveAvgPool1d(4), (2, 3, 10)),
    "a volume": (nn.AdaptiveAvgPool3d((2, 3, None)), (2, 3, 5, 7, 4)),
    "an image without a batch": (nn.AdaptiveAvgPool2d(3), (3, 8, 5)),
    "channels, odd window": (nn.LocalResponseNorm(5, alpha=0.1, beta=0.75, k=2.0), (2, 8, 5, 6)),
    "channels, even window": (nn.LocalResponseNorm(2, alpha=0.3), (2, 5, 7)),
    "channels, window wider than they are": (nn.LocalResponseNorm(9, alpha=0.3), (2, 4, 3, 3)),
    "channels of numbers": (nn.LocalResponseNorm(3, alpha=0.3), (4, 6, 2)),
}


def values_and_gradients(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    (gradient,) = torch.autograd.grad((outputs * torch.arange(outputs.numel()).view_as(outputs)).sum(), inputs)
    return outputs.detach(), gradient


@pytest.mark.parametrize(("layer", "shape"), list(LAYERS.values()), ids=list(LAYERS))
def test_a_form_has_the_values_and_gradients_of_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = values_and_gradients(layer, inputs)
    ours = copy.deepcopy(layer)
    use_deterministic_forms(ours, GPU)
    assert "forward" in vars(ours)
    for value, wanted in zip(values_and_gradients(ours, inputs), expected, strict=True):
        assert value.shape == wanted.shape
        torch.testing.assert_close(value, wanted)


def test_what_is_on_a_cpu_or_derived_stays_as_it_is() -> None:
    class Ours(nn.AdaptiveAvgPool2d):
        pass

    derived, plain = Ours(3), nn.AdaptiveAvgPool2d(3)
    use_deterministic_forms(derived, GPU)
    use_deterministic_forms(plain, CPU)
    assert "forward" not in vars(derived) | vars(plain)


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_computes_by_itself(copied: Any) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.LocalResponseNorm(2))
    use_deterministic_forms(network, GPU)
    double = copied(network)
    double[0].output_size = 2
    inputs = torch.ones(1, 1, 6, 6)
    assert (network(inputs).shape, double(inputs).shape) == ((1, 1, 3, 3), (1, 1, 2, 2))


@pytest.mark.parametrize("form", [nn.AdaptiveAvgPool2d(7), nn.LocalResponseNorm(3)])
def test_a_form_computes_by_operations_that_are_deterministic_on_a_gpu(form: nn.Module) -> None:
    """Those that torch refuses there are none of these."""
    use_deterministic_forms(form, GPU)
    inputs = torch.randn(2, 4, 10, 10, requires_grad=True)
    seen: list[str] = []

    def walk(node: Any) -> None:
        if node is not None:
            seen.append(node.name())
            for before, _ in node.next_functions:
                walk(before)

    walk(form(inputs).grad_fn)
    assert seen
    assert not [name for name in seen if "Pool" in name]
