"""A small residual network for RGB patches: the default encoder.

After "Identity mappings in deep residual networks" (He et al., 2016), but without normalisation layers: the
last convolution of every residual branch starts at zero instead, as in "Fixup initialization" (Zhang et al.,
2019). So a vector depends on nothing but its patch and a feature on nothing but its receptive field (group
normalisation sees the whole map, and strips of an image would differ from the image), and it is faster.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders.base import NARROWEST_CHANNELS_LAST, Encoder, Window
from pyrtrav.errors import ConfigError


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.leave = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)
        _draw(self.enter, "relu")
        # A block starts as its shortcut; without normalisation sums would otherwise grow from block to block.
        _draw(self.leave, None)
        if isinstance(self.shortcut, nn.Conv2d):
            _draw(self.shortcut, "linear")

    def forward(self, features: Tensor) -> Tensor:
        branch = functional.relu(self.enter(functional.relu(features)))
        total: Tensor = self.shortcut(features) + self.leave(branch)
        return total


class ResidualEncoder(Encoder):
    """A stem and, for each further width, a stage of residual blocks; each of them halves rows and columns.

    Args:
        channels: 1 or 3.
        base_resolution: a multiple of 2 to the number of widths; 64 gives a map of 4 x 4.
        widths: channels of the stem and of each stage; by default 2.9 million multiply-accumulates a patch.
        blocks: residual blocks in a stage.
        mean, std: of patches in 0..1, one number or one for each channel.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        base_resolution: int = 64,
        widths: Sequence[int] = (8, 16, 32, 64),
        blocks: int = 1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        if not widths or min(*widths, blocks) < 1:
            raise ConfigError(f"widths and blocks must be 1 or more, got {list(widths)} and {blocks}")
        stride = 2 ** len(widths)
        if base_resolution < stride or base_resolution % stride:
            raise ConfigError(
                f"base resolution {base_resolution} is no multiple of {stride}, "
                f"the stride of an encoder of {len(widths)} widths"
            )
        side = base_resolution // stride
        stage = (Window(3, 2), Window(3, 1), *[Window(3, 1)] * (2 * blocks - 2))
        super().__init__(
            channels=channels,
            base_resolution=base_resolution,
            vector_size=widths[-1],
            map_size=(side, side),
            map_channels=widths[-1],
            mean=mean,
            std=std,
            windows=(Window(3, 2), *stage * (len(widths) - 1)),
        )
        # Small kernels and an early ReLU tell rings of 7 px from discs sooner than larger, fewer ones.
        self.stem = nn.Conv2d(channels, widths[0], 3, stride=2, padding=1)
        _draw(self.stem, "linear")
        self.stages = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.stages.append(ResidualBlock(inputs, outputs, stride=2))
            self.stages.extend(ResidualBlock(outputs, outputs, stride=1) for _ in range(blocks - 1))
        if min(widths) >= NARROWEST_CHANNELS_LAST:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image map_channels rows columns"]:
        """Return the last feature map of normalised images, nowhere below 0."""
        return functional.relu(self.stages(self.stem(images)))


def _draw(layer: nn.Conv2d, before: Literal["relu", "linear"] | None) -> None:
    """Draw weights that keep the variance of what comes ``before`` the layer, or zeros; biases are zero."""
    if before is None:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity=before)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
