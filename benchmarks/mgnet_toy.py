"""The backbone of the multi-glimpse network's experiments on MNIST (its section 4.1, appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder


class ToyBackbone(Encoder):
    """Four convolutions with ReLU, three poolings: 5 x 5 x 16 without padding, 5 x 5 x 32, 3 x 3 x 64, 3 x 3 x 128."""

    def __init__(self, base_resolution: int = 28) -> None:
        side = ((base_resolution - 4) // 2 // 2) // 2
        super().__init__(
            channels=1, base_resolution=base_resolution, vector_size=128, map_size=(side, side), map_channels=128
        )
        layers: list[nn.Module] = []
        depth = 1
        for filters, kernel, padding in ((16, 5, 0), (32, 5, 2), (64, 3, 1), (128, 3, 1)):
            layers += [nn.Conv2d(depth, filters, kernel, padding=padding), nn.MaxPool2d(2), nn.ReLU()]
            depth = filters
        del layers[-2]  # no pooling after the last
        self.layers = nn.Sequential(*layers)
        # None has fewer filters than NARROWEST_CHANNELS_LAST.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features
