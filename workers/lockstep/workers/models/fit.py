"""What models ask of data."""

import torch

from lockstep.workers.engine import DataError, DataModule


def features_of(data: DataModule) -> int:
    """How many numbers an example has."""
    return int(torch.Size(data.input_shape).numel())


def classes_of(data: DataModule, kind: str) -> int:
    """The number of classes, for a model of a kind that needs classes.

    Raises:
        DataError: the data has numbers.
    """
    if data.num_classes is None:
        raise DataError(f"model.{kind}", f"{kind} needs classes as labels, but the data has numbers")
    return data.num_classes


def expect_numbers(data: DataModule, kind: str) -> None:
    """Go on when the data has numbers to predict.

    Raises:
        DataError: it has classes.
    """
    if data.num_classes is not None:
        raise DataError(f"model.{kind}", f"{kind} needs numbers as labels, but the data has classes")


def expect_images(data: DataModule, kind: str, least: int) -> None:
    """Go on when the data has images of at least `least` by `least` pixels.

    Raises:
        DataError: it has none, or smaller ones.
    """
    shape = data.input_shape
    if len(shape) != 3 or min(shape[1:]) < least:
        raise DataError(
            f"model.{kind}",
            f"{kind} needs images of at least {least} by {least} pixels, "
            f"but an example has the shape {' by '.join(map(str, shape))}",
        )
