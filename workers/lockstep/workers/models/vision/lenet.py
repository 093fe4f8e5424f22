"""LeNet-5 (D2L section 7.6; LeCun, Bottou, Bengio, Haffner, 1998), also with batch normalization (D2L section 8.5)."""

from torch import Tensor, nn

from lockstep.contract.bounds import LENET_LEAST_PIXELS
from lockstep.v1.job_spec_pb2 import LenetModel
from lockstep.workers.engine import Classifier, DataModule, Module
from lockstep.workers.models.fit import classes_of, expect_images
from lockstep.workers.models.layers import ACTIVATIONS, POOLINGS
from lockstep.workers.models.registry import builds


class LeNet(Classifier):
    """Two convolutions with pooling, then three fully connected layers; Xavier initialisation.

    Args:
        image_shape: channels, height and width of an image.
        activation: "sigmoid", "relu" or "tanh".
        pooling: "avg" or "max".
        classes: number of classes.
        batch_norm: whether there is batch normalization before each activation.
    """

    def __init__(
        self, image_shape: tuple[int, ...], activation: str, pooling: str, classes: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        activate, pool = ACTIVATIONS[activation], POOLINGS[pooling]
        left = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        images, features = (nn.BatchNorm2d, nn.BatchNorm1d) if batch_norm else (nn.Identity, nn.Identity)
        layers = (
            nn.Conv2d(channels, 6, kernel_size=5, padding=2),
            images(6),
            activate(),
            pool(kernel_size=2, stride=2),
            nn.Conv2d(6, 16, kernel_size=5),
            images(16),
            activate(),
            pool(kernel_size=2, stride=2),
            nn.Flatten(),
            nn.Linear(left, 120),
            features(120),
            activate(),
            nn.Linear(120, 84),
            features(84),
            activate(),
            nn.Linear(84, classes),
        )
        # Names of parameters count the layers, and those without batch normalization are as they were.
        self.net = nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))
        for layer in self.net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (n, channels, height, width) to scores (n, classes)."""
        return self.net(inputs)  # type: ignore[no-any-return]


@builds("lenet")
def build(spec: LenetModel, data: DataModule) -> Module:
    classes = classes_of(data, "lenet")
    expect_images(data, "lenet", LENET_LEAST_PIXELS)
    return LeNet(data.input_shape, spec.activation, spec.pooling, classes, spec.batch_norm)
