"""Numbers drawn from a linear model (D2L section 3.3)."""

import torch

from lockstep.v1.job_spec_pb2 import SyntheticRegressionData
from lockstep.workers.datasets.registry import builds
from lockstep.workers.engine import DataModule, Examples


class SyntheticRegression(DataModule):
    """y = Xw + b + noise, with X standard normal.

    Args:
        w: true weights, one per feature.
        b: true bias.
        noise: standard deviation of the noise.
        train_size: training examples.
        validation_size: validation examples.
        seed: seed of the draw.
    """

    field = "data.synthetic_regression"

    def __init__(
        self, w: tuple[float, ...], b: float, noise: float, *, train_size: int, validation_size: int, seed: int
    ) -> None:
        self.w, self.b, self.noise = w, b, noise
        self.train_size, self.validation_size, self.seed = train_size, validation_size, seed

    def load(self) -> None:
        """Draw the examples."""
        generator = torch.Generator().manual_seed(self.seed)
        size = self.train_size + self.validation_size
        inputs = torch.randn(size, len(self.w), generator=generator)
        noise = torch.randn(size, 1, generator=generator) * self.noise
        # A sum of products column by column, not a matrix product, whose bits may depend on threads.
        targets = noise + self.b
        for column, weight in enumerate(self.w):
            targets += inputs[:, column : column + 1] * weight
        self.train = Examples(inputs[: self.train_size], targets[: self.train_size])
        self.validation = Examples(inputs[self.train_size :], targets[self.train_size :])


@builds("synthetic_regression")
def build(spec: SyntheticRegressionData) -> DataModule:
    return SyntheticRegression(
        tuple(spec.w),
        spec.b,
        spec.noise,
        train_size=spec.train_size,
        validation_size=spec.validation_size,
        seed=spec.seed,
    )
