"""In what precision, and in what order in memory, a module computes; parameters, sums and exchange keep their own.

Both are part of the curve: every shard, on every rank, computes in the same way.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lockstep.workers.engine.errors import ModelError

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
        """Order the weights of convolutions of a module, in place, once they have their shapes."""
        if self.memory_format != "contiguous":
            for parameter in module.parameters():
                parameter.data = self._laid_out(parameter.data)

    def outputs(self, module: nn.Module, inputs: Any) -> Any:
        """What a module makes of a batch of inputs.

        Outputs of bfloat16 come as float32, so that losses are computed and added in that.
        """
        if self.memory_format != "contiguous":
            inputs = tree_map(self._laid_out, inputs)
        if self.precision != BF16:
            return module(inputs)
        # No weights in bfloat16 are kept, as they were when the pass began: a graph makes its own in every replay.
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16, cache_enabled=False):
            outputs = module(inputs)
        return tree_map(_widened, outputs)

    def check_losses(self, losses: Tensor, module: nn.Module) -> None:
        """Check that outputs have come as float32, which are found in tensors, tuples, lists and dicts alone.

        Raises:
            ModelError: losses were computed in bfloat16.
        """
        if self.precision == BF16 and losses.dtype == torch.bfloat16 != next(module.parameters()).dtype:
            raise ModelError(
                'loss returned bfloat16, as precision is "bf16" and outputs were not found to be made float32; have '
                "forward return a tensor, or a tuple, list or dict of them, or call .float() on them in loss"
            )

    def _laid_out(self, value: Any) -> Any:
        """Images, or weights of convolutions, in the order of this; anything else as it is."""
        if not isinstance(value, Tensor) or value.dim() != IMAGE_DIMENSIONS or value.layout != torch.strided:
            return value
        return value.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
