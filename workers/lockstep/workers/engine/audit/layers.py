"""Layers and operations that cannot be part of one curve, told by name."""

import contextlib
import re
from collections.abc import Iterator

from torch import nn

from lockstep.workers.engine.errors import ModelError, Parameter

COMMUNICATING = {
    "SyncBatchNorm": "use BatchNorm1d, BatchNorm2d or BatchNorm3d, which normalise within a shard and so are the same "
    "on any number of workers",
    "DataParallel": "use the module inside of it; the engine deals out the minibatch",
    "DistributedDataParallel": "use the module inside of it; the engine adds up the gradients",
    "FullyShardedDataParallel": "use the module inside of it; the engine adds up the gradients",
    "FSDPModule": "do not call fully_shard; the engine adds up the gradients",
}
"""Layers of torch that talk to other processes when they compute, and what to do."""

NO_IMPLEMENTATION = re.compile(r"(\S+) does not have a deterministic implementation")
"""How torch says that an operation gives other bits each time: with the name of its kernel."""
KERNEL_SUFFIX = re.compile(r"(_(forward|backward|cuda|gpu|cpu|out|frame|template|kernel|with_indices|2d_aa|aa))+$")
LAYERS_OF = {
    "avg_pool3d": ("AvgPool3d", "LocalResponseNorm"),
    "max_unpooling2d": ("MaxUnpool1d", "MaxUnpool2d"),
    "max_unpooling3d": ("MaxUnpool3d",),
    "embedding_bag_backward_cuda_max": ("EmbeddingBag",),
    "fractional_max_pool2d": ("FractionalMaxPool2d",),
    "fractional_max_pool3d": ("FractionalMaxPool3d",),
    "grid_sampler": (),
    "upsample": ("Upsample", "UpsamplingBilinear2d"),
}
"""Layers whose name is not that of their kernel, by the beginning of the kernel's name."""
HINTS = {
    "adaptive_avg_pool": "use nn.AdaptiveAvgPool2d(1), which is a mean, or nn.AvgPool2d with the size of a window",
    "adaptive_max_pool": "use nn.MaxPool2d with the size of a window",
    "avg_pool3d": "use nn.BatchNorm2d or nn.GroupNorm in the place of nn.LocalResponseNorm",
    "embedding_bag": 'use mode="sum" or "mean"',
    "upsample": 'use mode="nearest"',
    "reflection_pad": "use nn.ReplicationPad or nn.ZeroPad of the same dimension",
    "max_unpool": "use nn.ConvTranspose of the same dimension, or nn.Upsample",
    "fractional_max_pool": "use nn.MaxPool of the same dimension",
}
"""What to use in place of an operation, by the beginning of its kernel's name."""
ELSEWHERE = (
    "use another layer, or CPUs (",
    Parameter("device", 'device="cpu"'),
    ") if it has an implementation there",
)


def refuse_layers_that_communicate(module: nn.Module) -> None:
    """Refuse layers that would talk to other workers in the middle of a shard, of which those know nothing.

    Raises:
        ModelError: there is one; names it and the hint.
    """
    for path, layer in module.named_modules():
        for kind in type(layer).__mro__:
            if kind.__name__ in COMMUNICATING and kind.__module__.startswith("torch."):
                where = f"{path} is a layer" if path else "the model is a module"
                raise ModelError(
                    f"{where} of torch's {kind.__name__}, which talks to other processes while it computes and would "
                    f"make the curve depend on the number of workers; {COMMUNICATING[kind.__name__]}"
                )


@contextlib.contextmanager
def operations_told_by_name(module: nn.Module) -> Iterator[None]:
    """Around training: tell which operation has no deterministic implementation, which layers use it, and the hint.

    Raises:
        ModelError: torch has refused an operation.
    """
    try:
        yield
    except RuntimeError as error:
        found = NO_IMPLEMENTATION.search(str(error))
        if found is None:
            raise
        kernel = found.group(1)
        layers = layers_that_use(kernel, module)
        whose = f", which {' and '.join(layers)} {'use' if len(layers) > 1 else 'uses'}," if layers else ""
        hint = next(((hint,) for start, hint in HINTS.items() if kernel.startswith(start)), ELSEWHERE)
        raise ModelError(
            f"torch's {kernel}{whose} gives other bits each time that it runs on this device, so that there would be "
            "no one curve; ",
            *hint,
        ) from error


def layers_that_use(kernel: str, module: nn.Module) -> list[str]:
    """Paths and kinds of the layers that are known to use a kernel of torch, such as "pool (MaxUnpool2d)"."""
    kinds = next((kinds for start, kinds in LAYERS_OF.items() if kernel.startswith(start)), None)
    if kinds is None:
        name = KERNEL_SUFFIX.sub("", kernel).replace("_", "")
        kinds = tuple({type(layer).__name__ for layer in module.modules() if type(layer).__name__.lower() == name})
    return [
        f"{path} ({type(layer).__name__})" for path, layer in module.named_modules() if type(layer).__name__ in kinds
    ]
