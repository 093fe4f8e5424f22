"""Images and labels in IDX files, the format of MNIST and FashionMNIST."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockstep.contract.idx import IMAGES, LABELS, PARTS, TRAIN, VALIDATION
from lockstep.v1.job_spec_pb2 import IdxData
from lockstep.workers.datasets.images.idx_file import FIELD, by, check_idx, find_idx, read_idx
from lockstep.workers.datasets.registry import builds
from lockstep.workers.engine import DataError, DataModule, Examples

WHITE = 255.0
DIMENSIONS = {IMAGES: 3, LABELS: 1}


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
        self._statistics: tuple[float, float] | None = None

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
                f"training images are {by(shapes[0][1:])} pixels, but t10k images {by(shapes[1][1:])}; "
                "take the four files from one data set",
            )
        if self.standardize:
            mean, deviation = self._statistics = pixel_statistics(self.train.inputs)
            self._scale, self._shift = 1 / deviation, -mean / deviation
        self.num_classes = int(max(self.train.targets.max(), self.validation.targets.max())) + 1

    def files(self) -> list[Path]:
        """The four files, whose headers and sizes are right; what may have no end is never read to it."""
        found = []
        for prefix in PARTS:
            for part, dimensions in DIMENSIONS.items():
                found.append(find_idx(self.root / f"{prefix}-{part}"))
                check_idx(found[-1], dimensions)
        return found

    def preprocessing(self) -> dict[str, Any]:
        """Pixels are scaled to [0, 1], or standardised."""
        if self._statistics is None:
            return {"inputs": {"divide_by": WHITE}}
        mean, deviation = self._statistics
        return {"inputs": {"mean": [mean], "std": [deviation]}}

    def transform(self, inputs: Tensor) -> Tensor:
        """Bytes (n, 1, height, width) to scaled floats; memory holds the bytes, a quarter of the floats."""
        pixels = inputs.to(torch.float32).mul_(self._scale)
        return pixels.add_(self._shift) if self.standardize else pixels

    def _examples(self, prefix: str) -> Examples:
        images = read_idx(find_idx(self.root / f"{prefix}-{IMAGES}"), DIMENSIONS[IMAGES])
        labels = read_idx(find_idx(self.root / f"{prefix}-{LABELS}"), DIMENSIONS[LABELS])
        if len(images) != len(labels):
            raise DataError(
                FIELD,
                f"{self.root} has {len(images)} {prefix} images but {len(labels)} {prefix} labels; "
                "take the four files from one data set",
            )
        if images.numel() == 0:
            raise DataError(
                FIELD, f"{self.root} has {len(images)} {prefix} images of {by(images.shape[1:])} pixels; allowed: some"
            )
        return Examples(images.unsqueeze(1), labels.to(torch.int64))


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of bytes, from their exact counts; a deviation of 0 counts as 1."""
    counts = np.bincount(images.numpy().reshape(-1), minlength=256).astype(np.float64)
    values = np.arange(256)
    mean = float(counts @ values / counts.sum())
    variance = float(counts @ (values - mean) ** 2 / counts.sum())
    return mean, variance**0.5 or 1.0


@builds("idx", places=("root",))
def build(spec: IdxData) -> DataModule:
    return IdxDataset(spec.root, spec.standardize)
