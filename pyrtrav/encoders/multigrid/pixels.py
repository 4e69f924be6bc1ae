"""Networks with an output for every pixel: progressive multigrid ones, their single-grid twins, and U-nets.

Source: "Multigrid Neural Architectures", sections 3.3, 4.2 and 4.3, tables 2 and 3, figure 3 (bottom).

    PMG-11, R-PMG-20     `FlatNetwork` of four grids: no pooling; the coarsest grids end where the output is near
    SG-11, R-SG-20       the same layers with the finest grid alone
    U-NET-11, U-MG-11    `UNetwork` of one grid, and of pyramids

Differs from the paper:
1. Channels and layers that it does not print are as in the authors' code, where a grid that a layer does not give is
   not read by it either: R-PMG-20 then has the 1.20 million parameters of table 2, else it would have 1.21.
2. Logits come out; the paper's networks end with a sigmoid.
3. The last layer of U-MG-11 has no outputs on the grids that nothing follows (2,500 of 5.9 million weights).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders.multigrid.layers import Grids, ImageLayer, PlainUnit, ResidualUnit, image_pyramid
from pyrtrav.encoders.multigrid.trunk import Trunk, draw
from pyrtrav.encoders.multigrid.zoo import Design, Section
from pyrtrav.encoders.normalisation import make_norm
from pyrtrav.encoders.resize import halved
from pyrtrav.errors import ConfigError, nearest_name

SIDE = 64
"""Pixels of the paper's images; others may be larger."""


class FlatNetwork(nn.Module):
    """A network that keeps its grids' sizes, and drops coarse ones towards the end."""

    def __init__(self, design: Design, channels: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.grids = design.grids
        self.trunk = Trunk(design, channels, SIDE, norm)
        unit, kernel = (ResidualUnit, 1) if design.residual else (PlainUnit, 3)
        widths = [grid.channels for grid in self.trunk.section]
        self.output = unit(widths, [outputs], [kernel], norm, last=True)
        draw(self.output)

    def forward(self, images: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image output row column"]:
        """Return logits for every pixel of images in 0..1."""
        logits: Tensor = self.output(self.trunk(image_pyramid(images, self.grids)))[0]
        return logits


class UNetwork(nn.Module):
    """Convolutions and poolings down, up-convolutions and convolutions back, with what was there on the way down.

    Args:
        widths: channels of the grids of each level, largest grids first.
    """

    def __init__(self, widths: Sequence[Sequence[int]], channels: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.grids = len(widths[0])
        self.image = ImageLayer(channels, widths[0], False, norm)
        self.down, self.up, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for above, below in pairwise(widths):
            kept = above[: len(below)]
            self.down.append(PlainUnit(kept, below, [3] * len(below), norm))
            self.up.append(UpConvolution(below, kept, norm))
            joined = [*(2 * width for width in kept), *above[len(below) :]]
            self.join.append(PlainUnit(joined, above, [3] * len(above), norm))
        self.output = PlainUnit(widths[0], [outputs], [1], norm, last=True)
        draw(self)

    def forward(self, images: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image output row column"]:
        """Return logits for every pixel of images in 0..1."""
        levels = [self.image(image_pyramid(images, self.grids))]
        for down in self.down:
            levels.append(down([halved(grid) for grid in levels[-1]]))
        grids = levels.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            before = levels.pop()
            risen = up(grids)
            beside = [torch.cat([grid, _cut(more, grid)], 1) for grid, more in zip(before, risen, strict=False)]
            grids = join([*beside, *before[len(risen) :]])
        logits: Tensor = self.output(grids)[0]
        return logits


class UpConvolution(nn.Module):
    """A 2 x 2 up-convolution of each grid for itself, normalisation, ReLU."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], norm: str) -> None:
        super().__init__()
        pairs = list(zip(inputs, outputs, strict=True))
        self.convs = nn.ModuleList(nn.ConvTranspose2d(source, output, 2, 2) for source, output in pairs)
        self.norms = nn.ModuleList(make_norm(norm, output) for output in outputs)

    def forward(self, grids: Grids) -> Grids:
        found = zip(self.convs, self.norms, grids, strict=True)
        return [functional.relu(norm(conv(grid))) for conv, norm, grid in found]


def _cut(features: Tensor, like: Tensor) -> Tensor:
    return features[:, :, : like.shape[2], : like.shape[3]]


def _flat(widths: tuple[int, ...], residual: bool) -> Callable[[int, int, str], FlatNetwork]:
    """A unit on each number of grids, three on all, and one for each of two grids that end; the output follows."""
    sections = [Section(widths, 1, pool=False), Section(widths, 3, pool=False)]
    for dropped in (1, 2):
        sections.append(Section(widths[: max(1, len(widths) - dropped)], 1, pool=False))
    return partial(FlatNetwork, Design(tuple(sections), residual, progressive=True))


_FOUR, _ONE = (64, 32, 16, 8), (64,)

PIXEL_NETWORKS: dict[str, Callable[[int, int, str], nn.Module]] = {
    "U-NET-11": partial(UNetwork, ((64,), (128,), (256,), (512,))),
    "U-MG-11": partial(UNetwork, ((64, 32, 16), (128, 64, 32), (256, 128), (512,))),
    "SG-11": _flat(_ONE, residual=False),
    "R-SG-20": _flat(_ONE, residual=True),
    "PMG-11": _flat(_FOUR, residual=False),
    "R-PMG-20": _flat(_FOUR, residual=True),
}
"""Networks by the paper's names: from channels, outputs and a name of `NORMS` to a module."""


def build_pixel_network(name: str, *, outputs: int, channels: int = 1, norm: str = "batch") -> nn.Module:
    """Return a network with new weights from images (image, channel, row, column) in 0..1 to logits of the same size.

    Args:
        name: of `PIXEL_NETWORKS`.
        outputs: logits of a pixel: 10 digits of the segmentation, 1 of the spatial transformation.
        channels: of an image.
        norm: "batch", the paper's, or another of `NORMS`.

    Raises:
        ConfigError: no network or normalisation has this name.
    """
    if name not in PIXEL_NETWORKS:
        raise ConfigError(f"unknown network {name!r}{nearest_name(name, PIXEL_NETWORKS)}")
    return PIXEL_NETWORKS[name](channels, outputs, norm)
