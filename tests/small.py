"""Small real parts for tests: an encoder of a few weights and an image of random pixels."""

import numpy as np
import torch
from torch import nn

from pyrtrav.encoders.base import Encoder
from pyrtrav.pyramid.array import ArrayPyramid


class SmallEncoder(Encoder):
    """One convolution over a patch of 4 x 4 pixels."""

    def __init__(self, vector_size: int = 5) -> None:
        super().__init__(
            channels=1, base_resolution=4, vector_size=vector_size, map_size=(2, 2), map_channels=vector_size
        )
        self.conv = nn.Conv2d(1, vector_size, 2, stride=2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(images))


def random_image(seed: int, width: int = 16, height: int = 16) -> ArrayPyramid:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return ArrayPyramid(pixels, channels=1)
