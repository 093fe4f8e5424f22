"""Layers that torch computes on a GPU with other bits each time, computed by operations that it does not.

torch's kernels for their backward passes add up wherever a thread gets to first. The forms here are made of sums,
slices and products alone. On a CPU torch's own are deterministic, and stay.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def use_deterministic_forms(module: nn.Module, device: torch.device) -> None:
    """Have such layers of a module compute by their form here, where they are on a GPU.

    Classes that are derived from them are left alone: what they compute is not known.
    """
    if device.type != "cuda":
        return
    for layer in module.modules():
        form = FORMS.get(type(layer))
        if form is not None:
            layer.forward = partial(form, layer)  # no method, which could not be pickled


def adaptive_average_pool(inputs: Tensor, sizes: Sequence[int | None]) -> Tensor:
    """Means over windows that cover the last dimensions evenly, as `functional.adaptive_avg_pool2d` takes them.

    Window i of n over a dimension of length l reaches from floor(i l / n) to ceil((i + 1) l / n).

    Args:
        inputs: (..., *lengths), with as many lengths as there are sizes.
        sizes: how many windows each of these dimensions gets; None for one for each place.

    Returns:
        (..., *sizes).
    """
    for dimension, size in enumerate(sizes, start=inputs.dim() - len(sizes)):
        if size is not None and size != inputs.shape[dimension]:
            inputs = _means(inputs, dimension, size)
    return inputs


def local_response_norm(inputs: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Divide each number by (k + alpha * mean)^beta, the mean being over the squares of `size` channels around it.

    Channels beyond the first and the last count as 0, as in `functional.local_response_norm`.

    Args:
        inputs: (n, channels, ...).
        size: channels of a window.
        alpha: how much the mean counts.
        beta: the power.
        k: what is added to the mean.
    """
    channels = inputs.shape[1]
    squares = functional.pad(inputs.square().movedim(1, -1), (size // 2, (size - 1) // 2)).movedim(-1, 1)
    mean = sum(squares.narrow(1, shift, channels) for shift in range(size)) / size
    return inputs / (mean * alpha + k) ** beta


def _means(inputs: Tensor, dimension: int, size: int) -> Tensor:
    """Means over `size` windows of one dimension."""
    length = inputs.shape[dimension]
    if length % size == 0:
        windows = inputs.reshape(*inputs.shape[:dimension], size, -1, *inputs.shape[dimension + 1 :])
        return windows.mean(dimension + 1)
    means = []
    for window in range(size):
        start, stop = window * length // size, -(-(window + 1) * length // size)
        means.append(inputs.narrow(dimension, start, stop - start).mean(dimension))
    return torch.stack(means, dimension)


def _adaptive_average_pool(layer: Any, inputs: Tensor) -> Tensor:
    sizes = layer.output_size
    return adaptive_average_pool(inputs, sizes if isinstance(sizes, tuple) else (sizes,) * DIMENSIONS[type(layer)])


def _local_response_norm(layer: Any, inputs: Tensor) -> Tensor:
    return local_response_norm(inputs, layer.size, layer.alpha, layer.beta, layer.k)


DIMENSIONS: dict[type[nn.Module], int] = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
FORMS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(DIMENSIONS, _adaptive_average_pool),
    nn.LocalResponseNorm: _local_response_norm,
}
"""How layers of torch compute on a GPU."""
