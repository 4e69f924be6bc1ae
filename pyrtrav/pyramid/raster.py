"""Flat images through Pillow: PNG, JPEG, WebP, BMP, GIF and others.

Up to ``PYRTRAV_WHOLE_PIXELS`` the image is one tile: decoded whole when a pixel is first needed, with half-size
levels computed from it. A larger one is converted once to a tiled pyramid in the cache directory, and read from
there tile by tile. Of a large baseline JPEG the levels from 1/8 on are decoded from the file itself, at 1/8 in the
DCT domain, so that a glance needs no conversion: 0.4 s and 80 MB for 400 Mpx.

Which level is read how depends on the file and the limits alone, never on what the cache directory holds.
Simplified: the first frame only; EXIF orientation is applied, so that sizes are those that a viewer shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import CorruptImageError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.array import halve
from pyrtrav.pyramid.base import MAX_WINDOW_PIXELS, Pyramid
from pyrtrav.pyramid.converted import Conversion, tiled_levels
from pyrtrav.pyramid.flat import TURNS, check_memory, check_size, decode_whole, read_header
from pyrtrav.pyramid.limits import whole_pixels
from pyrtrav.pyramid.pixels import Window, display_window
from pyrtrav.pyramid.tiles import Key, Level, RawTile, Tile

SMALLEST_SIDE = 64
"""Half-size levels are computed until the longer side is at most this."""

SCALED_LEVEL = 3
"""Of a large baseline JPEG: 1/8, the coarsest that libjpeg decodes."""


class RasterPyramid(Pyramid):
    """A flat image: one stored tile, or the tiles of its converted pyramid.

    In the cost a whole decode is one tile of the file's bytes; tiles of the converted pyramid count as they are
    there, not as the conversion that made them.
    """

    backend: ClassVar[str] = "raster"
    _conversion: Conversion | None = None

    def _open(self) -> None:
        self._decoding = Lock()
        self._kept: dict[Key, Tile] = {}
        self._first: RawTile | None = None
        self._stored_bytes = os.path.getsize(self.path)
        self._conversion = None
        self._whole: int | None = 0
        """The level that is decoded at once; coarser ones are computed from it, finer ones converted."""
        header = self._header = read_header(self.path)
        check_size(self.path, header)
        width, height = header.upright
        self.samples, self.levels = header.samples, tuple(_halved_levels(width, height))
        self.mpp, self.bounds = None, Region(0, 0, width, height)
        self.properties = {
            "format": header.format,
            "mode": header.mode,
            "frames": str(header.frames),
            "orientation": f"{header.orientation} (applied)",
        }
        if width * height > whole_pixels():
            self._open_large()

    def _open_large(self) -> None:
        check_memory(self.path, self._header)
        tiled = tiled_levels(*self._header.upright)
        self._whole = SCALED_LEVEL if self._header.scalable and len(tiled) >= SCALED_LEVEL else None
        coarse = () if self._whole is None else self.levels[self._whole :]
        self.levels = (*tiled[: self._whole], *coarse)
        self._conversion = Conversion(self.path, tiled, self.samples)
        self.properties = {**self.properties, "converted": str(self._conversion)}

    def _close(self) -> None:
        self._kept, self._first = {}, None
        if self._conversion is not None:
            self._conversion.close()

    @property
    def tiles_total(self) -> int:
        tiled = sum(level.columns * level.rows for level in self.levels[: self._whole])
        return tiled + (self._whole is not None)

    def _is_whole(self, level: int) -> bool:
        return self._whole is not None and level >= self._whole

    def stored_tile(self, key: Key) -> Key:
        return (self._whole, 0, 0) if self._whole is not None and self._is_whole(key[0]) else key

    def _tile(self, key: Key, shrink: int = 1) -> Tile | None:
        if not self._is_whole(key[0]):
            return super()._tile(key)
        # One thread decodes; the others wait for it.
        with self._decoding:
            self._count_distinct(self.stored_tile(key))
            return self._level_tile(key)

    def _level_tile(self, key: Key) -> Tile:
        tile = self._kept.get(key) or self._recall(key)
        if tile is not None:
            return tile
        if key[0] == self._whole:
            raw, self._first = self._first or self._raw_tile(key), None
            assert raw is not None  # a flat image has no empty tile
            tile = Tile(*self.pixel_rule.apply(raw.samples))
        else:
            finer = self._level_tile((key[0] - 1, 0, 0))
            valid = None
            if finer.valid is not None:  # where more than half of the pixels are
                valid = halve(finer.valid[:, :, None] * np.uint8(255))[:, :, 0] > 128
            tile = Tile(halve(finer.pixels), valid)
        if tile.nbytes > self._cache.max_bytes:  # or every read would decode it again
            self._kept[key] = tile
        self._keep(tile, key)
        return tile

    def _is_slow(self, level: int) -> bool:
        """Whole decodes are: any coarse level takes one. Converted tiles lie on the disk already."""
        return self._is_whole(level)

    def _percentile_window(self) -> Window | None:
        """Percentiles of the image, which is kept for the first read: it is decoded once."""
        if self._whole is None:
            return super()._percentile_window()
        self._first = raw = self._raw_tile((self._whole, 0, 0))
        assert raw is not None  # a flat image has no empty tile
        return display_window([raw.samples[:: 1 + raw.samples.size // MAX_WINDOW_PIXELS].ravel()])

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        if not self._is_whole(level):
            assert self._conversion is not None
            return self._conversion.tile(level, column, row)
        samples = self._decode_scaled() if self._whole else decode_whole(self.path, self._header)
        return RawTile(samples, self._stored_bytes)

    def _decode_scaled(self) -> NDArray[Any]:
        """The whole JPEG at 1/8; strictly: damage is an error, not gray."""
        level, header = self.levels[SCALED_LEVEL], self._header
        width, height = (-(-side // 8) for side in header.size)
        with open(self.path, "rb") as file:
            data = file.read()
        samples: NDArray[Any] = simplejpeg.decode_jpeg(
            data, "GRAY" if header.target == "L" else "RGB", min_height=height, min_width=width, min_factor=1
        )
        if header.orientation in TURNS:
            image = Image.fromarray(samples[:, :, 0] if header.target == "L" else samples)
            samples = np.asarray(image.transpose(TURNS[header.orientation]))
        if samples.shape[:2] != (level.height, level.width):
            raise CorruptImageError(
                self.path, "its size is not what its header says", level=level.index, column=0, row=0
            )
        return samples.reshape(level.height, level.width, -1)


def _halved_levels(width: int, height: int) -> Iterator[Level]:
    w, h, index = width, height, 0
    while True:
        yield Level(index, w, h, width / w, height / h, w, h)
        if max(w, h) <= SMALLEST_SIDE:
            return
        w, h, index = -(-w // 2), -(-h // 2), index + 1
