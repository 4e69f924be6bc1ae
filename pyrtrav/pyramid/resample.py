"""The one way in which a region becomes a patch: the area-weighted mean.

A patch pixel is the mean of the level's pixels that its box covers, each weighted by the covered area; what lies
outside the image counts as background pixels. Tiles are added one by one, so memory does not grow with the region.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def box_sums(rows: NDArray[Any], edges: Float) -> Float:
    """Return the integral of ``rows`` (axis 0, one unit a row) between neighbouring edges, which lie in 0..len(rows).

    Running sums make the work independent of how many rows a box covers.
    """
    # Eight-bit rows are summed as integers, which is exact and half the memory traffic.
    dtype = np.uint32 if rows.dtype == np.uint8 else np.float64
    running = np.zeros((rows.shape[0] + 1, *rows.shape[1:]), dtype)
    np.cumsum(rows, axis=0, dtype=dtype, out=running[1:])
    whole = np.minimum(edges.astype(np.intp), rows.shape[0] - 1)
    part = (edges - whole).reshape(-1, *([1] * (rows.ndim - 1)))
    at_edges = running[whole].astype(np.float64) + part * rows[whole]
    return np.diff(at_edges, axis=0)


class Mosaic:
    """A patch in the making where patch pixels are level pixels: tiles are copied, which no rounding can change."""

    def __init__(
        self, left: int, top: int, size: tuple[int, int], background: tuple[int, ...], mask: bool
    ) -> None:
        width, height = size
        self.left, self.top, self.width, self.height = left, top, width, height
        self.pixels = np.empty((height, width, len(background)), np.uint8)
        self.pixels[:] = background
        self.valid: NDArray[np.bool_] | None = np.zeros((height, width), np.bool_) if mask else None

    def add(self, tile: Pixels | None, valid: Mask | None, x: int, y: int, width: int, height: int) -> None:
        """Add the tile part that lies at (x, y) of the level; None is a declared-empty tile."""
        if tile is None:
            return
        left, right = max(x, self.left), min(x + width, self.left + self.width)
        top, bottom = max(y, self.top), min(y + height, self.top + self.height)
        source = slice(top - y, bottom - y), slice(left - x, right - x)
        target = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        self.pixels[target] = tile[source]
        if self.valid is not None:
            self.valid[target] = True if valid is None else valid[source]

    def result(self) -> Pixels:
        return self.pixels

    def result_valid(self) -> Mask | None:
        return self.valid


class AreaMean:
    """A patch in the making.

    ``left`` and ``top`` are the patch's corner and ``step_x`` and ``step_y`` its pixel's sides, in the level's pixels.
    """

    def __init__(
        self,
        left: float,
        top: float,
        step_x: float,
        step_y: float,
        size: tuple[int, int],
        level_size: tuple[int, int],
        background: tuple[int, ...],
        mask: bool,
    ) -> None:
        width, height = size
        self.step_x, self.step_y = step_x, step_y
        self.edges_x = left + step_x * np.arange(width + 1, dtype=np.float64)
        self.edges_y = top + step_y * np.arange(height + 1, dtype=np.float64)
        inside_x = np.diff(np.clip(self.edges_x, 0, level_size[0])) / step_x
        inside_y = np.diff(np.clip(self.edges_y, 0, level_size[1])) / step_y
        outside = 1.0 - inside_y[:, None] * inside_x[None, :]
        self.background = np.asarray(background, np.float64)
        self.sum: Float = outside[:, :, None] * self.background
        self.valid: Float | None = np.zeros((height, width)) if mask else None

    def _touched(self, edges: Float, start: int, length: int) -> tuple[slice, Float]:
        """The patch's pixels along one axis that overlap ``start .. start + length``, and their edges within it."""
        first = max(int(np.searchsorted(edges, start, side="right")) - 1, 0)
        last = min(int(np.searchsorted(edges, start + length, side="left")), len(edges) - 1)
        return slice(first, last), np.clip(edges[first : last + 1] - start, 0, length)

    def add(self, tile: Pixels | None, valid: Mask | None, x: int, y: int, width: int, height: int) -> None:
        """Add the tile part that lies at (x, y) of the level; None is a declared-empty tile."""
        columns, edges_x = self._touched(self.edges_x, x, width)
        rows, edges_y = self._touched(self.edges_y, y, height)
        if columns.stop <= columns.start or rows.stop <= rows.start:
            return
        area = self.step_x * self.step_y
        covered = np.diff(edges_y)[:, None] * np.diff(edges_x)[None, :] / area
        if tile is None:
            self.sum[rows, columns] += covered[:, :, None] * self.background
            return
        self.sum[rows, columns] += _box_sums_2d(tile, edges_x, edges_y) / area
        if self.valid is not None:
            if valid is not None:
                covered = _box_sums_2d(valid[:, :, None], edges_x, edges_y)[:, :, 0] / area
            self.valid[rows, columns] += covered

    def result(self) -> Pixels:
        """The patch, rounded half to even. The sixth decimal is cleared first: it is noise of the summation."""
        return np.rint(np.round(self.sum, 6)).astype(np.uint8)

    def result_valid(self) -> Mask | None:
        """Whether more than half of a pixel's area is stored image."""
        return None if self.valid is None else self.valid > 0.5


def _box_sums_2d(pixels: NDArray[Any], edges_x: Float, edges_y: Float) -> Float:
    # Only the part between the outer edges is summed: a tile is often wider than the region.
    top, bottom = int(edges_y[0]), int(np.ceil(edges_y[-1]))
    left, right = int(edges_x[0]), int(np.ceil(edges_x[-1]))
    by_row = box_sums(pixels[top:bottom, left:right], edges_y - top)
    return box_sums(by_row.transpose(1, 0, 2), edges_x - left).transpose(1, 0, 2)


def patch_builder(
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    level_size: tuple[int, int],
    background: tuple[int, ...],
    mask: bool,
) -> Mosaic | AreaMean:
    """Return the builder for a patch of ``size`` whose corner and pixel sides are ``box``, in the level's pixels."""
    left, top, step_x, step_y = box
    if step_x == step_y == 1.0 and left.is_integer() and top.is_integer():
        return Mosaic(int(left), int(top), size, background, mask)
    return AreaMean(left, top, step_x, step_y, size, level_size, background, mask)
