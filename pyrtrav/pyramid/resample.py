"""The one way in which a region becomes a patch: the area-weighted mean.

A patch pixel is the mean of the level's pixels that its box covers, each weighted by the covered area; what
lies outside the image counts as background pixels. Where patch pixels are level pixels the tiles are copied.

The boxes' edges are whole multiples of 1/2^f of a level pixel, f as large as lets a box's sum fit 32 bits:
finer than 1/2000 of a patch pixel. All sums are integers then: exact, the same in any order, and twice as
fast as floats. Tiles are added one by one, so that memory does not grow with the region.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import RegionError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Sums = NDArray[np.uint32]
Edges = NDArray[np.int64]

MAX_BOX_PIXELS = 1 << 24
"""Level pixels that a patch pixel may cover: their sum fits 32 bits."""

# Above this many level pixels a patch pixel, running sums are faster than adding one pixel after the other.
_MAX_TERMS = 12
# Level pixels that are summed at once; bounds the memory that a large tile takes.
_BLOCK_PIXELS = 1 << 20


class Box(NamedTuple):
    """Where a patch lies in its level: corner, and the sides of one of its pixels, in the level's pixels."""

    left: float
    top: float
    step_x: float
    step_y: float

    @property
    def is_copy(self) -> bool:
        """Whether patch pixels are level pixels."""
        return self.step_x == self.step_y == 1.0 and self.left.is_integer() and self.top.is_integer()

    @property
    def bits(self) -> int:
        """The f of the edges: a box of 2^24 units at most, times 255, fits 32 bits."""
        # A rounded side may be a unit longer than the step; a tenth of a bit leaves room for it.
        return max(0, min(12, math.floor((23.9 - math.log2(self.step_x * self.step_y)) / 2)))

    def edges(self, width: int, height: int) -> tuple[Edges, Edges]:
        """Return the edges in x and in y of ``width`` x ``height`` patch pixels, in units of 1/2^f."""
        unit = 1 << self.bits
        return _edges(self.left, self.step_x, width, unit), _edges(self.top, self.step_y, height, unit)

    def extent(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of ``width`` x ``height`` patch pixels, in the level's pixels."""
        unit = 1 << self.bits
        ends = self.left, self.top, self.left + self.step_x * width, self.top + self.step_y * height
        left, top, right, bottom = (round(end * unit) / unit for end in ends)
        return left, top, right, bottom


def _edges(start: float, step: float, count: int, unit: int) -> Edges:
    edges: Edges = np.rint((start + step * np.arange(count + 1)) * unit).astype(np.int64)
    return edges


def box_sums(values: NDArray[Any], edges: Edges, unit: int, axis: int) -> Sums:
    """Return the sums of values (h, w, c) along an axis between edges, weighted by the covered units."""
    count, channels = values.shape[axis], values.shape[2]

    def weighted(index: NDArray[Any], weight: Edges) -> Sums:
        taken = np.take(values, index, axis=axis)
        weights = weight.astype(np.uint32)
        # Whole rows are multiplied at once; a broadcast over the few channels would be slow.
        factor = weights[:, None] if axis == 0 else np.repeat(weights, channels)
        product: Sums = taken.reshape(len(taken), -1) * factor
        return product.reshape(taken.shape)

    first = np.minimum(edges[:-1] // unit, count - 1)
    terms = int((-(-edges[1:] // unit) - first).max())
    if terms > _MAX_TERMS:
        # The sums may wrap around at 2^32; their differences come out right.
        running = np.cumsum(values, axis=axis, dtype=np.uint32)
        running = np.concatenate([np.zeros_like(np.take(running, [0], axis)), running], axis)
        whole = np.minimum(edges // unit, count - 1)
        at_edges = np.take(running, whole, axis) * np.uint32(unit) + weighted(whole, edges - whole * unit)
        differences: Sums = np.diff(at_edges, axis=axis)
        return differences
    total: Sums | None = None
    for term in range(terms):
        row = first + term
        weight = np.minimum(edges[1:], (row + 1) * unit) - np.maximum(edges[:-1], row * unit)
        part = weighted(np.minimum(row, count - 1), np.maximum(weight, 0))
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None  # boxes have a side, so there is a term
    return total


def box_sums_2d(pixels: NDArray[Any], edges_x: Edges, edges_y: Edges, unit: int) -> Sums:
    """Return the sums of pixels (h, w, c) over the boxes between neighbouring edges."""
    left, right = int(edges_x[0] // unit), int(-(-edges_x[-1] // unit))
    top, bottom = int(edges_y[0] // unit), int(-(-edges_y[-1] // unit))
    part = pixels[top:bottom, left:right]
    height, width = part.shape[:2]
    edges_x, edges_y = edges_x - left * unit, edges_y - top * unit
    block = max(1, _BLOCK_PIXELS // width)
    if height <= block:
        return box_sums(box_sums(part, edges_y, unit, 0), edges_x, unit, 1)
    total = np.zeros((len(edges_y) - 1, len(edges_x) - 1, pixels.shape[2]), np.uint32)
    for row in range(0, height, block):
        rows, within = touched(edges_y, row, min(block, height - row), unit)
        total[rows] += box_sums_2d(part[row : row + block], edges_x, within, unit)
    return total


def touched(edges: Edges, start: int, length: int, unit: int) -> tuple[slice, Edges]:
    """The boxes along an axis that overlap the pixels from ``start`` on, and their edges from there."""
    first = max(int(np.searchsorted(edges, start * unit, side="right")) - 1, 0)
    last = min(int(np.searchsorted(edges, (start + length) * unit, side="left")), len(edges) - 1)
    return slice(first, max(first, last)), np.clip(edges[first : last + 1] - start * unit, 0, length * unit)


class Place(NamedTuple):
    """Where a tile lies in its level, cut to the image."""

    x: int
    y: int
    width: int
    height: int


class Copy:
    """A patch whose pixels are level pixels."""

    def __init__(
        self,
        box: Box,
        level_size: tuple[int, int],
        background: tuple[int, ...],
        out: Pixels,
        valid: Mask | None,
    ) -> None:
        self.left, self.top = int(box.left), int(box.top)
        self.background, self.pixels, self.valid = background, out, valid
        height, width = out.shape[:2]
        self.right, self.bottom = self.left + width, self.top + height
        if min(self.left, self.top) < 0 or self.right > level_size[0] or self.bottom > level_size[1]:
            out[:] = background
        if valid is not None:
            valid[:] = False

    def paste(self, tile: Pixels | None, valid: Mask | None, at: Place) -> None:
        """Copy a tile's part; None is an empty tile. Tiles share no pixels: threads may paste at once."""
        left, right = max(at.x, self.left), min(at.x + at.width, self.right)
        top, bottom = max(at.y, self.top), min(at.y + at.height, self.bottom)
        source = slice(top - at.y, bottom - at.y), slice(left - at.x, right - at.x)
        target = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        self.pixels[target] = self.background if tile is None else tile[source]
        if self.valid is not None and tile is not None:
            self.valid[target] = True if valid is None else valid[source]


class Part(NamedTuple):
    """What one tile adds to an AreaMean."""

    rows: slice
    columns: slice
    sums: Sums
    covered: Sums | None


class AreaMean:
    """The area-weighted mean over a canvas of patch pixels, tile by tile."""

    def __init__(
        self,
        box: Box,
        size: tuple[int, int],
        level_size: tuple[int, int],
        background: tuple[int, ...],
        mask: bool,
    ) -> None:
        width, height = size
        if box.step_x * box.step_y > MAX_BOX_PIXELS:
            raise RegionError(
                f"a patch pixel would cover {box.step_x:.0f} x {box.step_y:.0f} stored pixels (the limit is 4,096 x "
                "4,096), because the image has no coarse levels; make a pyramid of it with `pyrtrav convert`"
            )
        self.unit = 1 << box.bits
        self.edges_x, self.edges_y = box.edges(width, height)
        self.background = np.asarray(background, np.uint32)
        self.sums: Sums = np.zeros((height, width, len(background)), np.uint32)
        self.covered: Sums | None = np.zeros((height, width), np.uint32) if mask else None
        right, bottom = level_size[0] * self.unit, level_size[1] * self.unit
        if self.edges_x[0] < 0 or self.edges_y[0] < 0 or self.edges_x[-1] > right or self.edges_y[-1] > bottom:
            inside = _areas(np.clip(self.edges_x, 0, right), np.clip(self.edges_y, 0, bottom))
            self.sums += (_areas(self.edges_x, self.edges_y) - inside)[:, :, None] * self.background

    def part(self, tile: Pixels | None, valid: Mask | None, at: Place) -> Part | None:
        """Return what a tile adds; None is an empty tile. Changes nothing: threads may ask at once."""
        columns, edges_x = touched(self.edges_x, at.x, at.width, self.unit)
        rows, edges_y = touched(self.edges_y, at.y, at.height, self.unit)
        if columns.start == columns.stop or rows.start == rows.stop:
            return None
        if tile is None:
            return Part(rows, columns, _areas(edges_x, edges_y)[:, :, None] * self.background, None)
        covered = None
        if self.covered is not None:
            if valid is None:
                covered = _areas(edges_x, edges_y)
            else:
                covered = box_sums_2d(valid[:, :, None], edges_x, edges_y, self.unit)[:, :, 0]
        return Part(rows, columns, box_sums_2d(tile, edges_x, edges_y, self.unit), covered)

    def add(self, part: Part) -> None:
        self.sums[part.rows, part.columns] += part.sums
        if self.covered is not None and part.covered is not None:
            self.covered[part.rows, part.columns] += part.covered

    def result(self) -> Pixels:
        """The means, rounded half to even."""
        height, _, channels = self.sums.shape
        widths = np.repeat(np.diff(self.edges_x), channels).astype(np.float64)
        heights = np.diff(self.edges_y).astype(np.float64)[:, None]
        sums = self.sums.reshape(height, -1)
        pixels = np.empty(sums.shape, np.uint8)
        for top in range(0, height, 8):  # a few rows at a time stay in the processor's cache
            means = sums[top : top + 8] / (heights[top : top + 8] * widths)
            pixels[top : top + 8] = np.rint(means, out=means)
        return pixels.reshape(self.sums.shape)

    def result_valid(self) -> Mask | None:
        """Whether more than half of a pixel's area is stored image."""
        return None if self.covered is None else self.covered > _areas(self.edges_x, self.edges_y) // 2


def _areas(edges_x: Edges, edges_y: Edges) -> Sums:
    return (np.diff(edges_y)[:, None] * np.diff(edges_x)).astype(np.uint32)
