"""Vendor slides through OpenSlide: Hamamatsu, Mirax, Leica, Ventana, Philips, Trestle, Zeiss, Sakura, DICOM.

Simplified: a tile is one of our requests (`read_region`), so `bytes_read` is unknown and the tile sizes are
OpenSlide's only where they are sensible. Tiles are asked for at level-native positions, where OpenSlide does
not interpolate.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import openslide
import tifffile

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import Samples
from pyrtrav.pyramid.tiff_levels import check_tile_sizes, is_tiff
from pyrtrav.pyramid.tiles import Level, RawTile

TILE = 256
"""Side of our own grid, for files whose tiles are strips, huge, or not reported."""

SENSIBLE_TILE = range(64, 1025)


class SlidePyramid(Pyramid):
    """A slide that OpenSlide opens; its background colour, bounds and mpp are the vendor's properties."""

    backend: ClassVar[str] = "slide"

    def _open(self) -> None:
        self._slide: openslide.OpenSlide | None = None
        self.properties, sizes = self.header()
        if not sizes or min(min(size) for size in sizes) < 1:
            raise CorruptImageError(self.path, f"impossible level sizes: {sizes}")
        width, height = sizes[0]
        self.levels = tuple(
            Level(i, w, h, width / w, height / h, *self._tile_size(i)) for i, (w, h) in enumerate(sizes)
        )
        self.mpp = self._believed_mpp(self.properties.get("openslide.mpp-x"))
        self.bounds = self._bounds(width, height)
        # OpenSlide's image is premultiplied; its Python side divides by alpha.
        self.samples = Samples(3, np.dtype(np.uint8), "straight")

    def header(self) -> tuple[dict[str, str], list[tuple[int, int]]]:
        """Return what OpenSlide says of the file: its properties, and width and height of every level."""
        _refuse_giant_tiles(self.path)
        slide = self._handle()
        return dict(slide.properties), [(int(width), int(height)) for width, height in slide.level_dimensions]

    def _tile_size(self, level: int) -> tuple[int, int]:
        try:
            width, height = (
                int(self.properties[f"openslide.level[{level}].tile-{side}"]) for side in ("width", "height")
            )
        except (KeyError, ValueError):
            return TILE, TILE
        return (width, height) if width in SENSIBLE_TILE and height in SENSIBLE_TILE else (TILE, TILE)

    def _bounds(self, width: int, height: int) -> Region:
        try:
            x, y, w, h = (float(self.properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
        except (KeyError, ValueError):
            return Region(0, 0, width, height)
        inside = Region(x, y, w, h).intersection(Region(0, 0, width, height))
        return inside if inside.area > 0 else Region(0, 0, width, height)

    def _file_identity(self) -> tuple[Hashable, ...]:
        """Of a MIRAX slide also its folder, which holds the pixels."""
        identity = super()._file_identity()
        folder, ending = os.path.splitext(self.path)
        if ending.lower() == ".mrxs" and os.path.isdir(folder):
            identity += (os.stat(folder).st_mtime_ns,)
        return identity

    def _stored_background(self) -> tuple[int, ...]:
        color = self.properties.get("openslide.background-color", "")
        try:
            return tuple(bytes.fromhex(color)) if len(color) == 6 else (255, 255, 255)
        except ValueError:
            return 255, 255, 255

    def _is_slow(self, level: int) -> bool:
        """OpenSlide takes milliseconds for what a disk gives in a fraction of one."""
        return True

    def _close(self) -> None:
        # Dropped, not closed: a thread may be inside a read, and the last one to leave closes it.
        self._slide = None

    def _handle(self) -> openslide.OpenSlide:
        slide = self._slide
        if slide is None:
            slide = self._slide = self._new_handle()
        return slide

    def _new_handle(self) -> openslide.OpenSlide:
        try:
            slide = openslide.OpenSlide(self.path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnsupportedFormatError(f"{self.path}: OpenSlide does not know this format") from error
        except openslide.OpenSlideError as error:
            raise CorruptImageError(self.path, f"OpenSlide cannot open it: {error}") from error
        # Decoded tiles are kept in our cache.
        slide.set_cache(openslide.OpenSlideCache(0))
        return slide

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        at = self.levels[level]
        x, y = column * at.tile_width, row * at.tile_height
        location = round(x * at.downsample_x), round(y * at.downsample_y)
        size = min(at.tile_width, at.width - x), min(at.tile_height, at.height - y)
        slide = self._handle()
        try:
            image = slide.read_region(location, level, size)
        except openslide.OpenSlideError:
            # An error stays with the handle, and may be that of another thread's tile: ask once more, alone.
            if self._slide is slide:
                self._slide = None
            try:
                image = self._new_handle().read_region(location, level, size)
            except openslide.OpenSlideError as error:
                raise CorruptImageError(self.path, str(error), level=level, column=column, row=row) from error
        samples = np.asarray(image)
        return RawTile(samples, None) if samples[..., 3].any() else None


def _refuse_giant_tiles(path: str) -> None:
    """OpenSlide ends the process where it gets no memory for a tile: a damaged tag must not reach it."""
    with open(path, "rb") as file:
        if not is_tiff(file.read(4)):
            return
    try:
        with tifffile.TiffFile(path, _multifile=False) as tif:
            check_tile_sizes(path, list(tif.pages))
    except PyramidError:
        raise
    except Exception as error:  # a parser of damaged bytes raises whatever they lead it to
        raise CorruptImageError(path, f"not a readable TIFF: {type(error).__name__}: {error}") from error


def vendor(path: str | os.PathLike[str]) -> str | None:
    """Return OpenSlide's name for the format, or None."""
    try:
        return openslide.OpenSlide.detect_format(os.fspath(path))
    except openslide.OpenSlideError:
        return None
