"""Names for the bits of a model."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row, little-endian."""
    flat = tensor.detach().to("cpu").contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def weights_digest(module: nn.Module) -> str:
    """SHA-256, hex, over name, dtype, shape and bytes of every entry of the module's state, by name."""
    return digest_of(module.state_dict())


def digest_of(state: Mapping[str, Tensor]) -> str:
    """The same of a state_dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
