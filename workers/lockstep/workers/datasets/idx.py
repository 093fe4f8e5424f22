"""Images and labels in IDX files, the format of MNIST and FashionMNIST.

The format, from http://yann.lecun.com/exdb/mnist: two zero bytes, one for the element type (8: unsigned byte), one for
the number of dimensions; each dimension as a big-endian 32-bit integer; then the elements, row by row.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lockstep.workers.engine import DataError, DataModule, Examples

FIELD = "data.idx.root"
UNSIGNED_BYTE = 8
WHITE = 255.0
PREFIXES = TRAIN, VALIDATION = "train", "t10k"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class IdxDataset(DataModule):
    """The four files of MNIST or FashionMNIST in one folder, each plain or gzipped. Pixels are scaled to [0, 1].

    Args:
        root: the folder.
        standardize: scale pixels once more, to mean 0 and deviation 1 over all pixels of the training images.
    """

    field = FIELD

    def __init__(self, root: str, standardize: bool = False) -> None:
        self.root, self.standardize = Path(root), standardize
        self._scale, self._shift = 1 / WHITE, 0.0

    def load(self) -> None:
        """Read the four files.

        Raises:
            DataError: one is missing, damaged or no IDX file, or images and labels do not belong together.
        """
        self.train = self._examples(TRAIN)
        self.validation = self._examples(VALIDATION)
        shapes = [tuple(part.inputs.shape[1:]) for part in (self.train, self.validation)]
        if shapes[0] != shapes[1]:
            raise DataError(
                FIELD,
                f"training images are {_by(shapes[0][1:])} pixels, but t10k images {_by(shapes[1][1:])}; "
                "take the four files from one data set",
            )
        if self.standardize:
            mean, deviation = pixel_statistics(self.train.inputs)
            self._scale, self._shift = 1 / deviation, -mean / deviation
        self.num_classes = int(max(self.train.targets.max(), self.validation.targets.max())) + 1

    def files(self) -> list[Path]:
        """The four files."""
        return [_existing(self.root / f"{prefix}-{part}") for prefix in PREFIXES for part in (IMAGES, LABELS)]

    def transform(self, inputs: Tensor) -> Tensor:
        """Bytes (n, 1, height, width) to scaled floats; memory holds the bytes, a quarter of the floats."""
        pixels = inputs.to(torch.float32).mul_(self._scale)
        return pixels.add_(self._shift) if self.standardize else pixels

    def _examples(self, prefix: str) -> Examples:
        images = read_idx(_existing(self.root / f"{prefix}-{IMAGES}"), dimensions=3)
        labels = read_idx(_existing(self.root / f"{prefix}-{LABELS}"), dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                FIELD,
                f"{self.root} has {len(images)} {prefix} images but {len(labels)} {prefix} labels; "
                "take the four files from one data set",
            )
        if images.numel() == 0:
            raise DataError(
                FIELD, f"{self.root} has {len(images)} {prefix} images of {_by(images.shape[1:])} pixels; allowed: some"
            )
        return Examples(images.unsqueeze(1), labels.to(torch.int64))


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of bytes, from their exact counts; a deviation of 0 counts as 1."""
    counts = np.bincount(images.numpy().reshape(-1), minlength=256).astype(np.float64)
    values = np.arange(256)
    mean = float(counts @ values / counts.sum())
    variance = float(counts @ (values - mean) ** 2 / counts.sum())
    return mean, variance**0.5 or 1.0


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The elements of an IDX file of unsigned bytes, plain or gzipped, uint8.

    Args:
        path: the file.
        dimensions: how many it must have.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(FIELD, f"{path} is no whole gzip file; fetch the file again") from error
    except OSError as error:
        raise DataError(FIELD, f"{path} cannot be read: {error.strerror or error}") from error
    header_size = 4 + 4 * dimensions
    if 4 <= len(content) < header_size:
        raise DataError(FIELD, f"{path} ends within its header; fetch the file again")
    if content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise DataError(
            FIELD,
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimension{'s' if dimensions > 1 else ''}; "
            f"it starts with {content[:4].hex(' ') or 'nothing'}, allowed: 00 00 08 {dimensions:02x}",
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header_size])
    size = int(np.prod(shape, dtype=object))
    if len(content) - header_size != size:
        raise DataError(
            FIELD,
            f"{path} should hold {size} bytes of data ({_by(shape)}) "
            f"but holds {len(content) - header_size}; fetch the file again",
        )
    elements = np.frombuffer(content, dtype=np.uint8, offset=header_size) if size else np.empty(0, dtype=np.uint8)
    return torch.from_numpy(elements.copy()).view(shape)


def _by(shape: Iterable[int]) -> str:
    return " by ".join(map(str, shape))


def _existing(path: Path) -> Path:
    """`path`, or the same with ".gz", whichever is there.

    Raises:
        DataError: neither is.
    """
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise DataError(FIELD, f"neither {path} nor {path.name}.gz is there; put one of them there, or name another folder")
