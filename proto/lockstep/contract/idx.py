"""IDX files as MNIST and FashionMNIST publish them: their names and how they begin."""

from __future__ import annotations

PARTS = TRAIN, VALIDATION = "train", "t10k"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
FILES = tuple(f"{part}-{what}" for part in PARTS for what in (IMAGES, LABELS))
"""The four files of a data set, each plain or with ".gz"."""

_UNSIGNED_BYTE = 8


def magic(dimensions: int) -> bytes:
    """The first four bytes of a file of unsigned bytes."""
    return bytes((0, 0, _UNSIGNED_BYTE, dimensions))
