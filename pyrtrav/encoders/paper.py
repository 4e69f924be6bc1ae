"""The feature extraction modules and baselines of top-down image pyramid traversal.

Source: "Image classification through top-down image pyramid traversal", appendix A.2, tables 1 to 5.

    feature extraction module           `PaperEncoder`
    V_n, feature vector (GAP, 1 x f)    ``Encoding.vector``
    F_n, feature map                    ``Encoding.map``
    baseline CNN (BL)                   `Baseline`
    base resolution                     ``base_resolution``

Differs from the paper:
1. The slope of the leaky ReLU is not stated; 0.2, TensorFlow's default, is ours, and ``slope`` changes it.
2. How MNIST is scaled is not stated: 0..1 here. ImageNet is scaled to -1..1 as in appendix A.6.2.
3. A baseline's convolutions keep the VALID pooling at any size, where the tables round N/2 and N/4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder, Window, init_xavier
from pyrtrav.errors import ConfigError

LEAKY_SLOPE = 0.2


class Row(NamedTuple):
    """A row of a table: a SAME convolution with leaky ReLU or, without filters, a VALID max pooling."""

    kernel: int
    stride: int
    filters: int = 0


class Table(NamedTuple):
    """A feature extraction module in numbers."""

    channels: int
    base_resolution: int
    mean: float
    std: float
    rows: tuple[Row, ...]


_POOL = Row(2, 2)

PAPER_ENCODERS: dict[str, Table] = {
    # Table 1. The second pooling is 3 x 3: 7 -> 3.
    "mnist-m3": Table(1, 14, 0.0, 1.0, (Row(3, 1, 32), _POOL, Row(3, 1, 64), Row(3, 2), Row(3, 1, 64))),
    # Table 2.
    "mnist-m2": Table(1, 14, 0.0, 1.0, (Row(3, 1, 32), _POOL, Row(3, 1, 64))),
    # Table 3. The only one that ends with a pooling.
    "mnist-m1": Table(1, 14, 0.0, 1.0, (Row(3, 1, 64), _POOL)),
    # Table 4.
    "imagenet-m2": Table(
        3, 32, 0.5, 0.5, (Row(3, 1, 64), _POOL, Row(3, 1, 128), _POOL, Row(3, 1, 256), _POOL, Row(3, 1, 256))
    ),
    # Table 5.
    "imagenet-m1": Table(3, 32, 0.5, 0.5, (Row(3, 1, 64), _POOL, Row(3, 1, 128), _POOL, Row(3, 1, 256))),
}
"""Feature extraction modules by name."""


class PaperEncoder(Encoder):
    """A feature extraction module of the paper; its vector is the global average of its last feature map."""

    def __init__(
        self,
        name: str,
        *,
        channels: int | None = None,
        base_resolution: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        slope: float = LEAKY_SLOPE,
    ) -> None:
        """Build the module ``name`` of `PAPER_ENCODERS`; ``None`` is the paper's value.

        Raises:
            ConfigError: channels or a base resolution other than the paper's.
        """
        table = PAPER_ENCODERS[name]
        if channels not in (None, table.channels) or base_resolution not in (None, table.base_resolution):
            raise ConfigError(
                f"encoder {name} has {table.channels} channels and base resolution {table.base_resolution}, "
                f"not {channels or table.channels} and {base_resolution or table.base_resolution}"
            )
        layers: list[nn.Module] = []
        depth, side = table.channels, table.base_resolution
        for kernel, stride, filters in table.rows:
            if filters:
                layers.append(nn.Conv2d(depth, filters, kernel, stride, padding=kernel // 2))
                layers.append(nn.LeakyReLU(slope))
                depth = filters
            else:
                # Before the activation instead of after it: the same values, for a quarter of the work.
                layers.insert(-1, nn.MaxPool2d(kernel, stride))
                side = (side - kernel) // stride + 1
        super().__init__(
            channels=table.channels,
            base_resolution=table.base_resolution,
            vector_size=depth,
            map_size=(side, side),
            map_channels=depth,
            mean=table.mean if mean is None else mean,
            std=table.std if std is None else std,
            windows=[Window(row.kernel, row.stride, pooling=not row.filters) for row in table.rows],
        )
        self.layers = nn.Sequential(*layers)
        init_xavier(self)
        # All of them have 32 filters or more (see NARROWEST_CHANNELS_LAST).
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image map_channels rows columns"]:
        """Return the last feature map of normalised images."""
        features: Tensor = self.layers(images)
        return features


class FullyConnectedHead(nn.Module):
    """The end of a baseline CNN: two hidden layers as wide as the vector, and a linear classifier.

    Args:
        vector_size: length of the pooled vector.
        classes: number of labels.
        slope: of the leaky ReLU.
        classifier_bias: whether the last layer has biases. The paper prints 64 x 10 + 10 parameters for that
            of MNIST, but 256 x 1,000 for that of ImageNet.
    """

    def __init__(
        self, vector_size: int, classes: int, *, slope: float = LEAKY_SLOPE, classifier_bias: bool = True
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(vector_size, vector_size),
            nn.LeakyReLU(slope),
            nn.Linear(vector_size, vector_size),
            nn.LeakyReLU(slope),
            nn.Linear(vector_size, classes, bias=classifier_bias),
        )
        init_xavier(self)

    def forward(self, vector: Float[Tensor, "image channel"]) -> Float[Tensor, "image label"]:
        """Return logits."""
        logits: Tensor = self.layers(vector)
        return logits


class Baseline(nn.Module):
    """A fully convolutional network: an encoder's features over whole images, their mean, and the head."""

    def __init__(self, encoder: Encoder, classes: int, *, classifier_bias: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = FullyConnectedHead(encoder.vector_size, classes, classifier_bias=classifier_bias)

    def forward(self, images: Float[Tensor, "image channels height width"]) -> Float[Tensor, "image label"]:
        """Return logits of images in 0..1 of any size."""
        logits: Tensor = self.head(self.encoder.features(self.encoder.normalise(images)).mean((2, 3)))
        return logits
