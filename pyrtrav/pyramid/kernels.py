"""The two loops of the area-weighted mean, compiled by numba: numpy takes seven times as long and holds the GIL.

Compiled once a machine, at the first mean (about two seconds), and kept where numba keeps such things. Importing
this takes a quarter of a second, so it is done where it is needed.
"""

# No `from __future__ import annotations` is needed here: numba reads the signatures.

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import int64 as i8
from numba import uint8 as u1
from numba import uint32 as u4
from numba import uint64 as u8
from numpy.typing import NDArray

# Some decoders give arrays that must not be written to.
_TILE = numba.types.Array(u1, 2, "C", readonly=True)
_WEIGHTS = numba.types.Tuple((u8[::1], u4[:, ::1]))  # type: ignore[no-untyped-call]
_CUT = numba.types.Tuple((i8, i8[::1]))  # type: ignore[no-untyped-call]
_PLACE = numba.types.UniTuple(i8, 4)  # type: ignore[no-untyped-call]
_PART = numba.types.Tuple((i8, i8, u4[:, ::1]))  # type: ignore[no-untyped-call]


def _compiled(signature: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
        try:
            compiled: Callable[..., Any] = numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # no folder to keep it in can be written
            compiled = numba.njit(signature, **options)(function)
        return compiled

    return compile_


@_compiled(_WEIGHTS(i8[::1], i8, i8))
def _weights(edges: NDArray[np.int64], start: int, side: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Of every box the first pixel that it covers, and as many weights as the widest box needs: loops of one length
    are loops that the processor foresees.
    """
    count = len(edges) - 1
    terms = 0
    for j in range(count):
        terms = max(terms, -((start - edges[j + 1]) // side) - (edges[j] - start) // side)
    first = np.empty(count, np.uint64)
    weights = np.zeros((count, terms), np.uint32)
    for j in range(count):
        first[j] = (edges[j] - start) // side
        edge = start + (edges[j] - start) // side * side
        for term in range(terms):
            weights[j, term] = max(min(edges[j + 1], edge + side) - max(edges[j], edge), 0)
            edge += side
    return first, weights


# Positions are unsigned: of a signed one the compiler would ask each time whether it counts from the end.


@_compiled(numba.void(u4[::1], u8[::1], u4[:, ::1], u4[::1]))
def _sum_colors(
    values: NDArray[np.uint32], first: NDArray[np.uint64], weights: NDArray[np.uint32], sums: NDArray[np.uint32]
) -> None:
    three = np.uint64(3)
    for j in range(len(first)):
        k, at = first[j], np.uint64(j) * three
        red = green = blue = np.uint32(0)
        if weights.shape[1] == 3:  # the usual case, without a loop
            a, b, c = weights[j, 0], weights[j, 1], weights[j, 2]
            red = values[k] * a + values[k + three] * b + values[k + np.uint64(6)] * c
            green = values[k + np.uint64(1)] * a + values[k + np.uint64(4)] * b + values[k + np.uint64(7)] * c
            blue = values[k + np.uint64(2)] * a + values[k + np.uint64(5)] * b + values[k + np.uint64(8)] * c
        else:
            for term in range(weights.shape[1]):
                weight = weights[j, term]
                red += values[k] * weight
                green += values[k + np.uint64(1)] * weight
                blue += values[k + np.uint64(2)] * weight
                k += three
        sums[at] = red
        sums[at + np.uint64(1)] = green
        sums[at + np.uint64(2)] = blue


@_compiled(numba.void(u4[::1], u8[::1], u4[:, ::1], u4[::1]))
def _sum_grays(
    values: NDArray[np.uint32], first: NDArray[np.uint64], weights: NDArray[np.uint32], sums: NDArray[np.uint32]
) -> None:
    for j in range(len(first)):
        gray = np.uint32(0)
        for term in range(weights.shape[1]):
            gray += values[first[j] + np.uint64(term)] * weights[j, term]
        sums[j] = gray


@_compiled(_CUT(i8[::1], i8, i8))
def _within(edges: NDArray[np.int64], start: int, stop: int) -> tuple[int, NDArray[np.int64]]:
    """The first box that overlaps ``start .. stop``, and the edges from there, cut to it; none are 0 edges."""
    first = max(int(np.searchsorted(edges, start, "right")) - 1, 0)
    last = min(int(np.searchsorted(edges, stop, "left")), len(edges) - 1)
    if first >= last:
        return 0, edges[:0].copy()
    cut = edges[first : last + 1].copy()
    cut[0], cut[-1] = max(cut[0], start), min(cut[-1], stop)
    return first, cut


@_compiled(_PART(_TILE, i8, _PLACE, i8, i8[::1], i8[::1]))
def box_sums(
    pixels: NDArray[np.uint8],
    channels: int,
    place: tuple[int, int, int, int],
    side: int,
    edges_x: NDArray[np.int64],
    edges_y: NDArray[np.int64],
) -> tuple[int, int, NDArray[np.uint32]]:
    """Sum pixels over the boxes between neighbouring edges, each weighted by its covered area.

    Args:
        pixels: a tile (rows, columns * channels) of 1 or 3 channels.
        place: left, top, right and bottom of its part of the image, in units.
        side: of a pixel, in units.
        edges_x, edges_y: of all boxes, in units, rising.

    Returns:
        The first box's row and column, and sums (boxes in y, boxes in x * channels) from there on.
    """
    left, top, right, bottom = place
    first_column, edges_x = _within(edges_x, left, right)
    first_row, edges_y = _within(edges_y, top, bottom)
    if len(edges_x) == 0 or len(edges_y) == 0:
        return 0, 0, np.empty((0, 0), np.uint32)
    start = (edges_x[0] - left) // side * channels
    width = -((left - edges_x[-1]) // side) * channels - start
    first, weights = _weights(edges_x, left, side)
    for j in range(len(first)):
        first[j] = first[j] * channels - start
    row_sums = np.zeros(width + weights.shape[1] * channels, np.uint32)
    sums = np.empty((len(edges_y) - 1, (len(edges_x) - 1) * channels), np.uint32)
    for i in range(len(edges_y) - 1):
        row_sums[:] = np.uint32(0)
        row = (edges_y[i] - top) // side
        edge = top + row * side
        while edge < edges_y[i + 1]:
            weight = np.uint32(min(edges_y[i + 1], edge + side) - max(edges_y[i], edge))
            source = pixels[row, start : start + width]
            for k in range(width):
                row_sums[k] += np.uint32(source[k]) * weight
            row += 1
            edge += side
        if channels == 3:
            _sum_colors(row_sums, first, weights, sums[i])
        else:
            _sum_grays(row_sums, first, weights, sums[i])
    return first_row, first_column, sums


@_compiled(_PART(i8, _PLACE, i8[::1], i8[::1]))
def box_areas(
    channels: int, place: tuple[int, int, int, int], edges_x: NDArray[np.int64], edges_y: NDArray[np.int64]
) -> tuple[int, int, NDArray[np.uint32]]:
    """Return what ``box_sums`` does for a tile of ones."""
    left, top, right, bottom = place
    first_column, edges_x = _within(edges_x, left, right)
    first_row, edges_y = _within(edges_y, top, bottom)
    if len(edges_x) == 0 or len(edges_y) == 0:
        return 0, 0, np.empty((0, 0), np.uint32)
    areas = np.empty((len(edges_y) - 1, (len(edges_x) - 1) * channels), np.uint32)
    for i in range(len(edges_y) - 1):
        for k in range(areas.shape[1]):
            j = k // channels
            areas[i, k] = (edges_y[i + 1] - edges_y[i]) * (edges_x[j + 1] - edges_x[j])
    return first_row, first_column, areas


@_compiled(numba.void(u4[:, ::1], i8, i8, u4[:, ::1]))
def add_at(sums: NDArray[np.uint32], row: int, column: int, part: NDArray[np.uint32]) -> None:
    """Add a part to the sums, at a place."""
    for i in range(part.shape[0]):
        target = sums[row + i, column : column + part.shape[1]]
        for k in range(part.shape[1]):
            target[k] += part[i, k]


@_compiled(numba.void(u4[:, ::1], i8[::1], i8[::1], i8, u1[:, ::1]))
def box_means(
    sums: NDArray[np.uint32],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    channels: int,
    means: NDArray[np.uint8],
) -> None:
    """Divide sums (rows, columns * channels) by the boxes' areas, halves to even."""
    sides = np.repeat(widths.astype(np.float64), channels)
    for i in range(len(heights)):
        height = np.float64(heights[i])
        for k in range(len(sides)):
            means[i, k] = np.uint8(np.rint(sums[i, k] / (height * sides[k])))
