"""In what precision, and in what order in memory, a module computes; parameters, sums and exchange keep their own.

Both are part of the curve: every shard, on every rank, computes in the same way.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

FP32, TF32, BF16 = "fp32", "tf32", "bf16"
PRECISIONS = (FP32, TF32, BF16)
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGE_DIMENSIONS = 4
"""Of a batch of images, (n, channels, height, width)."""


class Precision(NamedTuple):
    """How a module computes its outputs.

    Attributes:
        precision: "fp32"; "tf32", where a GPU multiplies with 10 bits of the fraction and adds in fp32; or "bf16",
            where `torch.autocast` chooses the operations that compute in bfloat16.
        memory_format: how images and the weights of convolutions lie in memory: "contiguous", channel by channel, or
            "channels_last", pixel by pixel, which is what tensor cores read.
    """

    precision: str = FP32
    memory_format: str = "contiguous"

    def lay_out(self, module: nn.Module) -> None:
        """Order the weights of a module, in place, once they have their shapes."""
        if self.memory_format != "contiguous":
            module.to(memory_format=MEMORY_FORMATS[self.memory_format])  # type: ignore[call-overload]

    def outputs(self, module: nn.Module, inputs: Any) -> Any:
        """What a module makes of a batch of inputs.

        Outputs of bfloat16 come as float32, so that losses are computed and added in that.
        """
        if self.memory_format != "contiguous" and isinstance(inputs, Tensor) and inputs.dim() == IMAGE_DIMENSIONS:
            inputs = inputs.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])
        if self.precision != BF16:
            return module(inputs)
        # No weights in bfloat16 are kept, as they were when the pass began: a graph makes its own in every replay.
        with torch.autocast(inputs.device.type, torch.bfloat16, cache_enabled=False):
            outputs = module(inputs)
        return tree_map(_widened, outputs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
