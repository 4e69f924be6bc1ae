"""What a pyramid is made of: levels, stored tiles, and the patches that are read from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import PyramidError

MPP_RANGE = (0.02, 50.0)
"""Micrometres per pixel that are believed; anything else (72 dpi, 0, 1e308) is a missing value."""

MAX_TILE_PIXELS = 64 << 20
"""A tile above this is refused before it is decoded."""

MAX_TILE_BYTES = 512 << 20
"""As MAX_TILE_PIXELS, for tiles of many or wide samples."""

Key = tuple[int, int, int]
"""Level, column, row."""


class Place(NamedTuple):
    """Where a tile lies in its level, cut to the image."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Level:
    """One stored resolution; ``tile_width`` and ``tile_height`` are the file's storage unit in its pixels."""

    index: int
    width: int
    height: int
    downsample_x: float
    downsample_y: float
    tile_width: int
    tile_height: int

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile_height)

    def tile_at(self, column: int, row: int) -> Place:
        """Return where a tile lies."""
        x, y = column * self.tile_width, row * self.tile_height
        return Place(x, y, min(self.tile_width, self.width - x), min(self.tile_height, self.height - y))


class Tile(NamedTuple):
    """Pixels (h, w, channels) and which of them are stored image; None where all are."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + (0 if self.valid is None else self.valid.nbytes)


class RawTile(NamedTuple):
    """What a backend decodes: samples (h, w, n) as stored, and how many compressed bytes it read for them."""

    samples: NDArray[Any]
    stored_bytes: int | None


class Patches(NamedTuple):
    """Patches (n, height, width, channels), their masks if asked for, and per region what went wrong."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None
    errors: list[PyramidError | None]


def plausible_mpp(value: object) -> float | None:
    """Return the value as micrometres per pixel where it is believable (see MPP_RANGE), else None."""
    try:
        mpp = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return mpp if MPP_RANGE[0] <= mpp <= MPP_RANGE[1] else None
