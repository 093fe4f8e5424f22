"""Where tensors lie in memory, and which of them share some."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WORD_BYTES = 8


class Extent(NamedTuple):
    """From the first to the last byte of a named tensor in its storage, and all between."""

    start: int
    stop: int
    name: str
    tensor: Tensor


def dimensions(tensor: Tensor) -> list[tuple[int, int]]:
    """Size and stride of each dimension."""
    return list(zip(tensor.shape, tensor.stride(), strict=True))


def words(tensor: Tensor) -> Tensor:
    """The bits of a dense tensor in order, as 64-bit integers, (n,), the last one filled up with zeros.

    A view of its memory where that lies in whole words, else a copy.
    """
    bytes_ = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    rest = -bytes_.numel() % WORD_BYTES
    if rest or bytes_.storage_offset() % WORD_BYTES:
        bytes_ = torch.cat((bytes_, bytes_.new_zeros(rest)))
    return bytes_.view(torch.int64)


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """Those of a tensor that fills its memory in any order, as in channels_last; else those of a contiguous one."""
    return torch.empty_like(tensor, device="meta").stride()


def overlaps(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, str]]:
    """Names of the tensors some of whose memory belongs to another one too, and of that; "" for the tensor itself."""
    by_storage: dict[int, list[Extent]] = {}
    for name, tensor in named:
        if tensor.layout == torch.strided and tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(extent_of(name, tensor))
    found: list[tuple[str, str]] = []
    for extents in by_storage.values():
        for cluster in clusters(extents):
            if len(cluster) > 1 or strides_of(cluster[0].tensor) != cluster[0].tensor.stride():
                found += overlaps_within(cluster)
    return found


def extent_of(name: str, tensor: Tensor) -> Extent:
    """That of a tensor with elements."""
    start = int(tensor.storage_offset()) * tensor.element_size()
    last = sum((size - 1) * stride for size, stride in dimensions(tensor))
    return Extent(start, start + (last + 1) * tensor.element_size(), name, tensor)


def clusters(extents: list[Extent]) -> Iterator[list[Extent]]:
    """Groups of extents that may overlap; the many tensors that lie one after another are each by itself."""
    ordered = sorted(extents, key=lambda extent: extent.start)
    stops = itertools.accumulate((extent.stop for extent in ordered), max)
    cluster = ordered[:1]
    for stop, extent in zip(stops, ordered[1:], strict=False):
        if extent.start >= stop:
            yield cluster
            cluster = []
        cluster.append(extent)
    yield cluster


def overlaps_within(cluster: list[Extent]) -> list[tuple[str, str]]:
    """The same of tensors of one storage, byte by byte."""
    first = min(extent.start for extent in cluster)
    owners = torch.full((max(extent.stop for extent in cluster) - first,), -1, dtype=torch.int32)
    found = []
    for index, (start, _, name, tensor) in enumerate(cluster):
        width = tensor.element_size()
        # Of a dimension that was expanded, one element stands for all.
        shape = (*(1 if stride == 0 else size for size, stride in dimensions(tensor)), width)
        strides = (*(stride * width for _, stride in dimensions(tensor)), 1)
        mine = owners.as_strided(shape, strides, start - first)
        other = int(mine.max())
        if other >= 0:
            found.append((name, cluster[other].name))
        mine.fill_(index)
        if int((owners == index).sum()) < tensor.nbytes:
            found.append((name, ""))
    return found
