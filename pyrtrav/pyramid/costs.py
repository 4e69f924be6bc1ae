"""What looking would cost, from the levels alone: nothing is decoded for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyrtrav.errors import UnsupportedFormatError
from pyrtrav.geometry import Grid, Region, halvings, root_region
from pyrtrav.pyramid.base import Level, Pyramid
from pyrtrav.pyramid.batch import box_of, tile_range
from pyrtrav.pyramid.tiles import Key

MAX_GLANCE_PIXELS = 256_000_000
"""A glance that decodes more is refused: the image lacks a pyramid."""


def tiles_of(pyramid: Pyramid, level: Level, region: Region) -> int:
    """Number of the level's tiles that share area with the region (level-0 pixels)."""
    scale_x, scale_y = level.width / pyramid.width, level.height / pyramid.height
    columns = tile_range(region.x * scale_x, region.right * scale_x, level.tile_width, level.width)
    rows = tile_range(region.y * scale_y, region.bottom * scale_y, level.tile_height, level.height)
    return len(columns) * len(rows)


def glance_pixels(pyramid: Pyramid, base_resolution: int) -> int:
    """Pixels that the glance decodes."""
    root = root_region(pyramid.bounds, base_resolution)
    level = pyramid.level_for(root, (base_resolution, base_resolution))
    return _pixels(level, tiles_of(pyramid, level, root))


def tiles_decoded_for(pyramid: Pyramid, looks: Iterable[tuple[Region, int]]) -> set[Key]:
    """Return the stored tiles that reading regions at sizes decodes, each once; declared empty ones included."""
    keys: set[Key] = set()
    for region, size in looks:
        level = pyramid.level_for(region, (size, size))
        box = box_of(region, (size, size), level, (pyramid.width, pyramid.height))
        left, top, right, bottom = box.extent(size, size)
        columns = tile_range(left, right, level.tile_width, level.width)
        rows = tile_range(top, bottom, level.tile_height, level.height)
        keys |= {pyramid.stored_tile((level.index, column, row)) for row in rows for column in columns}
    return keys


def pixels_decoded_for(pyramid: Pyramid, looks: Iterable[tuple[Region, int]]) -> int:
    """Return the pixels of those tiles: ``Cost.pixels_decoded`` where none was cached or had to be decoded twice.

    Tiles at the image's edge count as whole, which is how TIFF and zarr store them.
    """
    levels = [pyramid.levels[index] for index, _, _ in tiles_decoded_for(pyramid, looks)]
    return sum(level.tile_width * level.tile_height for level in levels)


def _pixels(level: Level, tiles: int) -> int:
    return tiles * min(level.tile_width, level.width) * min(level.tile_height, level.height)


def looking_costs(pyramid: Pyramid, base_resolution: int, grid: Grid | None = None) -> list[dict[str, Any]]:
    """Return for every depth what looking at all of its distinct cells costs; depth 0 is the glance."""
    grid = grid or Grid()
    root = root_region(pyramid.bounds, base_resolution)
    costs = []
    for depth in range(halvings(root, base_resolution, grid.side) + 1):
        cell = grid.lattice_region(root, depth, 0, 0)
        level = pyramid.level_for(cell, (base_resolution, base_resolution))
        tiles = tiles_of(pyramid, level, pyramid.bounds)
        costs.append(
            {
                "depth": depth,
                "cells": _cells_with_image(grid, root, pyramid.bounds, depth),
                "downsample": cell.width / base_resolution,
                "level": level.index,
                "tiles": tiles,
                "pixels": _pixels(level, tiles),
            }
        )
    return costs


def _cells_with_image(grid: Grid, root: Region, bounds: Region, depth: int) -> int:
    """Distinct cells of a depth that share area with the image."""
    columns = rows = 0
    for position in range(grid.positions(depth)):
        cell = grid.lattice_region(root, depth, position, position)
        columns += cell.x < bounds.right and cell.right > bounds.x
        rows += cell.y < bounds.bottom and cell.bottom > bounds.y
    return columns * rows


def check_glance(pyramid: Pyramid, base_resolution: int) -> None:
    """Raise UnsupportedFormatError where the first look alone would decode more than MAX_GLANCE_PIXELS."""
    pixels = glance_pixels(pyramid, base_resolution)
    if pixels > MAX_GLANCE_PIXELS:
        raise UnsupportedFormatError(
            f"{pyramid.path}: a first look at it decodes {pixels / 1e6:,.0f} Mpx (the limit is "
            f"{MAX_GLANCE_PIXELS / 1e6:,.0f}), because it has no coarse levels; "
            "make a pyramid of it with `pyrtrav convert`"
        )
