"""Layers on a pyramid of grids: each takes and gives a list of feature maps, finest first.

The grid after a grid has half its rows and columns, rounded up. Where a patch comes with its context, the grids after
the finest have as many positions as that would give twice the side, and the finest lies in their middle. `Grid` says
what a grid is: the method ``after`` of every layer returns what it makes of such grids, without context.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders.normalisation import make_norm
from pyrtrav.encoders.resize import centred, enlarged, halved

Grids = list[Tensor]
"""Feature maps (image, channel, row, column), finest first."""


class Grid(NamedTuple):
    """What is known of a feature map before there is one."""

    channels: int
    stride: int
    """Side in pixels of the cell that belongs to a position."""
    margin: int
    """Pixels that a position sees at most on any side of its cell."""


def image_pyramid(images: Tensor, grids: int) -> Grids:
    """Return images at full, half, quarter ... size, by average pooling."""
    return [images, *(functional.avg_pool2d(images, 2**g, ceil_mode=True) for g in range(1, grids))]


def gather(grids: Grids) -> Grids:
    """Return for each grid the channels of the finer one, halved, its own, and those of the coarser one, doubled.

    Where the coarser one shows more, its middle is taken; around the finer one there are zeros.
    """
    gathered = []
    for own, grid in enumerate(grids):
        rows, columns = grid.shape[2:]
        finer = [centred(halved(grids[own - 1]), rows, columns)] if own else []
        shown = [centred(coarse, -(-rows // 2), -(-columns // 2)) for coarse in grids[own + 1 : own + 2]]
        coarser = [enlarged(coarse, 2, grid) for coarse in shown]
        gathered.append(torch.cat([*finer, grid, *coarser], 1))
    return gathered


def gathered_channels(channels: Sequence[int]) -> list[int]:
    """Return the channels that `gather` makes of channels by grid."""
    return [sum(channels[max(own - 1, 0) : own + 2]) for own in range(len(channels))]


class MgConv(nn.Module):
    """Multigrid convolution: gather neighbouring grids, convolve each grid with its own filters, normalise.

    Args:
        inputs, outputs: channels of each grid. With fewer outputs than inputs the coarsest grids end here: they are
            no longer read either.
        kernels: 3 or 1 for each output grid.
        norm: a name of `NORMS`.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        sources = gathered_channels(inputs[: len(outputs)])
        self.convs = nn.ModuleList(
            nn.Conv2d(source, output, kernel, padding=kernel // 2)
            for source, output, kernel in zip(sources, outputs, kernels, strict=True)
        )
        self.norms = nn.ModuleList(make_norm(norm, output) for output in outputs)
        self.outputs, self.kernels = tuple(outputs), tuple(kernels)

    def forward(self, grids: Grids) -> Grids:
        sources = gather(grids[: len(self.convs)])
        return [norm(conv(source)) for conv, norm, source in zip(self.convs, self.norms, sources, strict=True)]

    def after(self, before: Sequence[Grid]) -> list[Grid]:
        """Return what comes out."""
        read, found = before[: len(self.convs)], []
        for own, (grid, outputs, kernel) in enumerate(zip(read, self.outputs, self.kernels, strict=True)):
            margins = [grid.margin, *(finer.margin for finer in read[max(own - 1, 0) : own])]
            # A position's coarser cell sticks out by one position on one side.
            margins += [coarser.margin + grid.stride for coarser in read[own + 1 : own + 2]]
            found.append(Grid(outputs, grid.stride, max(margins) + kernel // 2 * grid.stride))
        return found


class PlainUnit(nn.Module):
    """A multigrid convolution and, unless it is the last, ReLU."""

    def __init__(
        self, inputs: Sequence[int], outputs: Sequence[int], kernels: Sequence[int], norm: str, last: bool = False
    ) -> None:
        super().__init__()
        self.conv, self.last = MgConv(inputs, outputs, kernels, norm), last

    def forward(self, grids: Grids) -> Grids:
        found: Grids = self.conv(grids)
        return found if self.last else [functional.relu(grid) for grid in found]

    def after(self, before: Sequence[Grid]) -> list[Grid]:
        """Return what comes out."""
        return self.conv.after(before)


class ResidualUnit(nn.Module):
    """Two multigrid convolutions beside a shortcut on each grid; ReLU after the first and, unless last, the sum.

    A shortcut is the identity, with zeros for new channels; where there are fewer, a 1 x 1 convolution.
    """

    def __init__(
        self, inputs: Sequence[int], outputs: Sequence[int], kernels: Sequence[int], norm: str, last: bool = False
    ) -> None:
        super().__init__()
        self.enter = MgConv(inputs, outputs, kernels, norm)
        self.leave, self.last = MgConv(outputs, outputs, kernels, norm), last
        self.shortcuts = nn.ModuleList(
            Widen(output - source)
            if output >= source
            else nn.Sequential(nn.Conv2d(source, output, 1), make_norm(norm, output))
            for source, output in zip(inputs, outputs, strict=False)  # a grid that ends has none
        )

    def forward(self, grids: Grids) -> Grids:
        branch: Grids = self.leave([functional.relu(grid) for grid in self.enter(grids)])
        straight = [shortcut(grid) for shortcut, grid in zip(self.shortcuts, grids, strict=False)]
        sums = [one + other for one, other in zip(branch, straight, strict=True)]
        return sums if self.last else [functional.relu(grid) for grid in sums]

    def after(self, before: Sequence[Grid]) -> list[Grid]:
        """Return what comes out."""
        return self.leave.after(self.enter.after(before))


class Widen(nn.Module):
    """The identity, and zeros for further channels."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, features: Tensor) -> Tensor:
        return functional.pad(features, (0, 0, 0, 0, 0, self.more)) if self.more else features


class OnCoarsest(nn.Module):
    """A unit on the coarsest grids alone; the finer ones wait."""

    def __init__(self, unit: PlainUnit | ResidualUnit, grids: int) -> None:
        super().__init__()
        self.unit, self.grids = unit, grids

    def forward(self, grids: Grids) -> Grids:
        return [*grids[: -self.grids], *self.unit(grids[-self.grids :])]

    def after(self, before: Sequence[Grid]) -> list[Grid]:
        """Return what comes out."""
        return [*before[: -self.grids], *self.unit.after(before[-self.grids :])]


class MgPool(nn.Module):
    """Multigrid pooling: every grid is halved.

    Args:
        merge: the second coarsest grid, halved, and the coarsest, or its middle, become one: they have the same size,
            and the pyramid has one grid less.
    """

    def __init__(self, merge: bool) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, grids: Grids) -> Grids:
        if not self.merge:
            return [halved(grid) for grid in grids]
        *finer, second, coarsest = grids
        small = halved(second)
        return [*map(halved, finer), torch.cat([small, centred(coarsest, *small.shape[2:])], 1)]

    def after(self, before: Sequence[Grid]) -> list[Grid]:
        """Return what comes out."""
        found = [grid._replace(stride=2 * grid.stride) for grid in before]
        if not self.merge:
            return found
        second, coarsest = before[-2:]
        margin = max(second.margin, coarsest.margin)
        return [*found[:-2], Grid(second.channels + coarsest.channels, coarsest.stride, margin)]


class ImageLayer(nn.Module):
    """The first layer: a convolution of its own on the image at each grid's size, normalisation, ReLU.

    Args:
        channels: of the image.
        outputs: channels of each grid.
        large: ResNet's beginning, a 7 x 7 convolution and a 3 x 3 pooling, both of stride 2; else a 3 x 3 convolution.
    """

    def __init__(self, channels: int, outputs: Sequence[int], large: bool, norm: str) -> None:
        super().__init__()
        kernel, stride = (7, 2) if large else (3, 1)
        self.large = large
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, kernel, stride, kernel // 2) for width in outputs)
        self.norms = nn.ModuleList(make_norm(norm, width) for width in outputs)

    def forward(self, images: Grids) -> Grids:
        found = []
        for image, conv, norm in zip(images, self.convs, self.norms, strict=True):
            features = functional.relu(norm(conv(image)))
            found.append(functional.max_pool2d(features, 3, 2, padding=1) if self.large else features)
        return found

    def after(self) -> list[Grid]:
        """Return what comes out."""
        found = []
        for grid, conv in enumerate(self.convs):
            pixel = 2**grid
            # Before its cell the pooling sees one position of two pixels, and that the three of the convolution.
            stride, margin = (4 * pixel, 5 * pixel) if self.large else (pixel, pixel)
            found.append(Grid(conv.out_channels, stride, margin))  # type: ignore[arg-type]
        return found
