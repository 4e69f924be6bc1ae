"""Images in memory whose patches carry a gradient back to their pixels: what an attack on a model works with.

A patch is what a file of the same pixels gives: the mean over its region, on the reader's own grid of edges, rounded to
whole numbers. Rounding has no gradient of use, so it is passed straight through: values are those of bytes, gradients
those of the means.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.errors import RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.pyramid.base import Patches
from pyrtrav.pyramid.resample import Box


class InMemory(ArrayPyramid):
    """An array of a model's own pixels that stands for an image: with its name, its background and its mpp."""

    def __init__(
        self, pixels: NDArray[np.uint8], *, path: str, background: tuple[int, ...], mpp: float | None = None
    ) -> None:
        """Take pixels (height, width, 1 or 3) and what lies outside of them, a value a channel."""
        self._outside = background
        super().__init__(pixels, mpp=mpp, channels=1 if pixels.shape[2] == 1 else 3)
        self.path = path

    def _stored_background(self) -> tuple[int, ...]:
        return self._outside * 3 if len(self._outside) == 1 else self._outside


class TensorImage:
    """An image of any size whose pixels are a tensor of values in 0..255, on any device."""

    def __init__(
        self,
        pixels: Float[Tensor, "channels height width"],
        *,
        path: str = "<tensor>",
        background: tuple[int, ...] = (255, 255, 255),
        mpp: float | None = None,
        rounded: bool = True,
    ) -> None:
        """Take an image.

        Args:
            background: of what lies outside, a value a channel.
            rounded: values are those of the image written as bytes; else as they are, valid colours or not.
        """
        self.path, self.mpp, self.rounded = path, mpp, rounded
        self.background = background[: len(pixels)]
        self.channels, height, width = pixels.shape
        self.bounds = Region(0.0, 0.0, float(width), float(height))
        self._pixels = _whole(pixels.clamp(0, 255)) if rounded else pixels

    def read_many(
        self, regions: Sequence[Region], size: int | tuple[int, int], /, *, out: NDArray[np.uint8] | None = None
    ) -> Patches:
        """Return patches as bytes, without a gradient."""
        return self.as_bytes().read_many(regions, size, out=out)

    def as_bytes(self) -> InMemory:
        """Return the image as it would be written."""
        pixels = self._pixels.detach().clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return InMemory(np.ascontiguousarray(pixels), path=self.path, background=self.background, mpp=self.mpp)

    def read_tensors(
        self, regions: Sequence[Region], size: int | tuple[int, int]
    ) -> Float[Tensor, "region channels height width"]:
        """Return patches in 0..1, with a gradient; ``size`` is their side, or (width, height).

        Raises:
            RegionError: a region has no area.
        """
        width, height = size if isinstance(size, tuple) else (size, size)
        found = torch.stack([self._mean(region, width, height) for region in regions])
        return (_whole(found) if self.rounded else found) / 255

    def _mean(self, region: Region, width: int, height: int) -> Tensor:
        if region.width <= 0 or region.height <= 0:
            raise RegionError(f"{self.path}: a region needs an area, got {region.width} x {region.height}")
        box = Box(region.x, region.y, region.width / width, region.height / height)
        across, down = box.edges(width, height)
        unit, pixels = 1 << box.bits, self._pixels
        columns, right = _shares(across, pixels.shape[2], unit)
        rows, below = _shares(down, pixels.shape[1], unit)
        along, over = (torch.from_numpy(shares).to(pixels) for shares in (right, below))
        inside = over @ pixels[:, rows, columns] @ along.T
        outside = 1 - over.sum(1)[:, None] * along.sum(1)
        return inside + outside * torch.tensor(self.background).to(pixels)[:, None, None]


def _shares(edges: NDArray[np.int64], length: int, unit: int) -> tuple[slice, NDArray[np.float64]]:
    """Which pixels of an axis some boxes touch, and the share of each box (row) that each of these (column) covers."""
    first, last = (min(max(int(edge), 0), length) for edge in (edges[0] // unit, -(-edges[-1] // unit)))
    pixel = np.arange(first, last + 1) * unit
    start, end = edges[:-1, None], edges[1:, None]
    covered = np.minimum(end, pixel[None, 1:]) - np.maximum(start, pixel[None, :-1])
    return slice(first, last), covered.clip(min=0) / (end - start)


def _whole(values: Tensor) -> Tensor:
    """Whole numbers, halves to even; the gradient passes straight through."""
    return values + (values.round() - values).detach()
