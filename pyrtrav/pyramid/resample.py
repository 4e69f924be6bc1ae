"""The one way in which a region becomes a patch: the area-weighted mean.

A patch pixel is the mean of the level's pixels that its box covers, each weighted by the covered area; what
lies outside the image counts as background pixels. Where patch pixels are level pixels the tiles are copied.

The boxes' edges are whole multiples of 1/2^f of a level pixel, f as large as lets a box's sum fit 32 bits:
finer than 1/2000 of a patch pixel. All sums are integers then: exact, and the same in any order. Tiles are added
one by one, so that memory does not grow with the region.
"""

from __future__ import annotations

import math
from functools import cache
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import RegionError
from pyrtrav.pyramid import buffers
from pyrtrav.pyramid.tiles import Place

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Sums = NDArray[np.uint32]
Edges = NDArray[np.int64]

MAX_BOX_PIXELS = 1 << 24
"""Level pixels that a patch pixel may cover: their sum fits 32 bits."""


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
        return max(0, min(30, math.floor((23.9 - math.log2(self.step_x * self.step_y)) / 2)))

    def edges(self, width: int, height: int) -> tuple[Edges, Edges]:
        """Return the edges in x and in y of ``width`` x ``height`` patch pixels, in units of 1/2^f."""
        unit = 1 << self.bits
        return _edges(self.left, self.step_x, width, unit), _edges(self.top, self.step_y, height, unit)

    def extent(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of ``width`` x ``height`` patch pixels, in the level's pixels."""
        if self.is_copy:
            return self.left, self.top, self.left + width, self.top + height
        unit = 1 << self.bits
        ends = self.left, self.top, self.left + self.step_x * width, self.top + self.step_y * height
        left, top, right, bottom = (round(end * unit) / unit for end in ends)
        return left, top, right, bottom


def _edges(start: float, step: float, count: int, unit: int) -> Edges:
    edges: Edges = np.rint((start + step * np.arange(count + 1)) * unit).astype(np.int64)
    return edges


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

    def add(self, tile: Pixels | None, valid: Mask | None, at: Place, shrink: int = 1) -> None:
        """Copy a tile's part; None is an empty tile. Tiles share no pixels: threads may copy at once."""
        left, right = max(at.x, self.left), min(at.x + at.width, self.right)
        top, bottom = max(at.y, self.top), min(at.y + at.height, self.bottom)
        source = slice(top - at.y, bottom - at.y), slice(left - at.x, right - at.x)
        target = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        self.pixels[target] = self.background if tile is None else tile[source]
        if self.valid is not None and tile is not None:
            self.valid[target] = True if valid is None else valid[source]


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
        if min(np.diff(self.edges_x).min(), np.diff(self.edges_y).min()) < 1:
            raise RegionError(f"patch pixels of {box.step_x:g} x {box.step_y:g} stored pixels cannot be told apart")
        self.background = np.asarray(background, np.uint32)
        self.sums: Sums = _zeros((height, width, len(background)))
        self.covered: Sums | None = _zeros((height, width)) if mask else None
        self._lock = Lock()
        right, bottom = level_size[0] * self.unit, level_size[1] * self.unit
        if self.edges_x[0] < 0 or self.edges_y[0] < 0 or self.edges_x[-1] > right or self.edges_y[-1] > bottom:
            inside = _areas(np.clip(self.edges_x, 0, right), np.clip(self.edges_y, 0, bottom))
            self.sums += (_areas(self.edges_x, self.edges_y) - inside)[:, :, None] * self.background

    def add(self, tile: Pixels | None, valid: Mask | None, at: Place, shrink: int = 1) -> None:
        """Add a tile's part; None is an empty tile. Threads may add at once.

        Args:
            tile, valid: whose pixels are squares of ``shrink`` level pixels a side.
            at: in level pixels.
        """
        channels = len(self.background)
        unit = self.unit
        place = at.x * unit, at.y * unit, (at.x + at.width) * unit, (at.y + at.height) * unit
        if tile is None:
            row, column, areas = _kernels().box_areas(channels, place, self.edges_x, self.edges_y)
            self._add_at(self.sums, row, column, areas * np.tile(self.background, areas.shape[1] // channels))
            return
        self._add_at(self.sums, *self._sums(tile, place, shrink))
        if self.covered is not None and valid is None:
            self._add_at(self.covered, *_kernels().box_areas(1, place, self.edges_x, self.edges_y))
        elif self.covered is not None and valid is not None:
            self._add_at(self.covered, *self._sums(valid.view(np.uint8)[:, :, None], place, shrink))

    def _sums(self, tile: Pixels, place: tuple[int, int, int, int], shrink: int) -> tuple[int, int, Sums]:
        pixels = np.ascontiguousarray(tile).reshape(len(tile), -1)
        part: tuple[int, int, Sums] = _kernels().box_sums(
            pixels, tile.shape[2], place, shrink * self.unit, self.edges_x, self.edges_y
        )
        return part

    def _add_at(self, sums: Sums, row: int, column: int, part: Sums) -> None:
        with self._lock:
            flat = sums.reshape(len(sums), -1)
            _kernels().add_at(flat, row, column * (flat.shape[1] // len(self.edges_x[1:])), part)

    def result(self) -> Pixels:
        """The means, rounded half to even."""
        height, width, channels = self.sums.shape
        means = buffers.empty((height, width * channels))
        _kernels().box_means(
            self.sums.reshape(height, -1), np.diff(self.edges_x), np.diff(self.edges_y), channels, means
        )
        return means.reshape(self.sums.shape)

    def result_valid(self) -> Mask | None:
        """Whether more than half of a pixel's area is stored image."""
        return None if self.covered is None else self.covered > _areas(self.edges_x, self.edges_y) // 2


@cache
def _kernels() -> ModuleType:
    """The compiled loops. They take half a second to load, which ``info`` need not spend."""
    import pyrtrav.pyramid.kernels as kernels

    return kernels


def _zeros(shape: tuple[int, ...]) -> Sums:
    sums = buffers.empty(shape, "uint32")
    sums.fill(0)
    return sums


def _areas(edges_x: Edges, edges_y: Edges) -> Sums:
    return (np.diff(edges_y)[:, None] * np.diff(edges_x)).astype(np.uint32)
