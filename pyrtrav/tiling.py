"""Every tile of one depth: the places of a method that looks everywhere.

Tiles are the cells of a depth that do not overlap: a lattice of 2^depth x 2^depth squares over the root.
"""

import math
from typing import NamedTuple

import numpy as np

from pyrtrav.geometry import Region
from pyrtrav.sampling import Image
from pyrtrav.selection import Bools, Floats, Ints

NEAR_BACKGROUND = 25
"""A pixel is near the background where no channel differs from it by more, of 255: glass is 230 to 255."""

FOOTPRINT = 8
"""Side of a tile on the thumbnail that finds the background, in pixels."""

THUMBNAIL = 2048
"""Longest side of that thumbnail in pixels; with very many tiles each has fewer."""


class Tiles(NamedTuple):
    """Tiles of one image, row by row."""

    column: Ints
    row: Ints
    region: Floats
    """(tile, 4): level-0 pixels."""

    def take(self, index: Ints | Bools) -> "Tiles":
        return Tiles(self.column[index], self.row[index], self.region[index])


def tiles_of(bounds: Region, root: Region, depth: int) -> Tiles:
    """Return the tiles of a depth that hold some of the image."""
    side = root.width / 2**depth
    columns = _span(bounds.x - root.x, bounds.right - root.x, side)
    rows = _span(bounds.y - root.y, bounds.bottom - root.y, side)
    row, column = (axis.reshape(-1) for axis in np.meshgrid(rows, columns, indexing="ij"))
    size = np.full(len(row), side)
    return Tiles(column, row, np.stack([root.x + column * side, root.y + row * side, size, size], axis=1))


def _span(start: float, end: float, side: float) -> Ints:
    """The positions that share a length with start..end; less than a millionth of a tile is rounding."""
    return np.arange(math.floor(start / side + 1e-6), math.ceil(end / side - 1e-6))


def background_share(image: Image, root: Region, depth: int) -> Floats:
    """Return (row, column) for every tile of a depth the share of its pixels on a thumbnail that are near background.

    Raises:
        PyramidError: the image cannot be read.
    """
    count = 2**depth
    footprint = max(1, min(FOOTPRINT, THUMBNAIL // count))
    thumbnail = image.read_many([root], count * footprint)
    # What lies outside the image is background, by contract, and through a view of changed colours too.
    outside = image.read_many([Region(root.x - 2 * root.width, root.y, 1.0, 1.0)], 1)
    for error in (*thumbnail.errors, *outside.errors):
        if error is not None:
            raise error
    background = outside.pixels[0, 0, 0].astype(np.int16)
    near = (np.abs(thumbnail.pixels[0].astype(np.int16) - background) <= NEAR_BACKGROUND).all(axis=2)
    share: Floats = near.reshape(count, footprint, count, footprint).mean(axis=(1, 3))
    return share


def without_background(tiles: Tiles, share: Floats, most: float) -> Tiles:
    """Return the tiles whose share of background is below ``most``; where none is, the one with the least."""
    own = share[tiles.row, tiles.column]
    kept = own < most
    return tiles.take(kept if kept.any() else np.array([int(own.argmin())]))
