"""Tiled and striped TIFF and BigTIFF: Aperio SVS, OME-TIFF, generic pyramids, COG.

tifffile parses the directories, and a tile is one positioned read of its bytes. The file handle is ours, so
threads and forked processes share nothing that moves. Simplified: the tag Orientation is ignored, as
OpenSlide does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import wanted_samples
from pyrtrav.pyramid.source import Source, open_source
from pyrtrav.pyramid.tiff_decode import decode_segment, natural_colors
from pyrtrav.pyramid.tiff_levels import Directory, find_levels
from pyrtrav.pyramid.tiff_words import read_ome, read_properties, read_samples
from pyrtrav.pyramid.tiles import Key, Level, RawTile, plausible_mpp

# tifffile reports damage in its log; ours is in the exceptions.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False

# Stored bytes beyond the decoded tile's that are believed: no codec doubles a tile.
_SLACK_BYTES = 1 << 20


class TiffPyramid(Pyramid):
    """A TIFF file."""

    backend: ClassVar[str] = "tiff"

    def _open(self) -> None:
        self._source: Source | None = None
        try:
            with tifffile.TiffFile(self.path, _multifile=False) as tif:
                first_page: Any = tif.pages[0] if len(tif.pages) else None
                ome = read_ome(first_page.description or "") if first_page else None
                self._directories = find_levels(self.path, tif, ome.channels if ome else range(1))
                self.properties = properties = read_properties(tif, ome)
            first = self._directories[0]
            planes = len(first.pages)
            self.samples = read_samples(self.path, first.pages[0], planes, properties)
            # Of many planes only those that the model sees are read; otherwise one may be alpha, or an ink.
            every = self.samples.colors != planes
            self._planes = tuple(range(planes)) if every else wanted_samples(planes, self._options["channels"])
        except PyramidError:
            raise
        except Exception as error:  # a parser of damaged bytes raises whatever they lead it to
            raise CorruptImageError(
                self.path, f"not a readable TIFF: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        self.levels = tuple(
            Level(
                i,
                directory.width,
                directory.height,
                first.width / directory.width,
                first.height / directory.height,
                directory.tile_width,
                directory.tile_height,
            )
            for i, directory in enumerate(self._directories)
        )
        self.bounds = Region(0, 0, first.width, first.height)
        self.mpp = plausible_mpp(properties.get("mpp"))
        self._source = open_source(self.path)

    def _close(self) -> None:
        source, self._source = getattr(self, "_source", None), None
        if source is not None:
            source.close()

    def _prefetch(self, keys: Sequence[Key]) -> None:
        assert self._source is not None  # open while it is read
        self._source.prefetch(
            (int(directory.offsets[plane, index]), int(directory.counts[plane, index]))
            for level, column, row in keys
            for directory in (self._directories[level],)
            for index in (row * self.levels[level].columns + column,)
            for plane in self._planes
        )

    def _decode_tile(self, level: int, column: int, row: int) -> RawTile | None:
        directory = self._directories[level]
        index = row * self.levels[level].columns + column
        stored, decoded = 0, {}
        for plane in self._planes:
            offset, count = int(directory.offsets[plane, index]), int(directory.counts[plane, index])
            if offset and count:
                data = self._read_bytes(offset, count, 2 * directory.tile_bytes + _SLACK_BYTES)
                decoded[plane] = self._decode_plane(directory, plane, data, column, row)
                stored += count
        if not decoded:
            return None  # a sparse tile
        samples = next(iter(decoded.values()))
        if len(directory.pages) > 1:
            samples = np.zeros((*samples.shape[:2], len(directory.pages)), samples.dtype)
            for plane, values in decoded.items():
                samples[..., plane] = values[..., 0]
        return RawTile(natural_colors(samples, directory.pages[0], directory.colormap), stored)

    def _decode_plane(self, directory: Directory, plane: int, data: bytes, column: int, row: int) -> NDArray[Any]:
        size = directory.tile_width, directory.tile_height
        columns = -(-directory.width // size[0])
        samples = decode_segment(directory.pages[plane], data, row * columns + column, size)
        height, width = samples.shape[:2]
        needed = min(size[0], directory.width - column * size[0]), min(size[1], directory.height - row * size[1])
        if width < needed[0] or height < needed[1]:
            raise ValueError(f"the tile is {width} x {height} pixels, but {size[0]} x {size[1]} are declared")
        return samples

    def _read_bytes(self, offset: int, count: int, limit: int) -> bytes:
        source = self._source
        assert source is not None  # open while it is read
        if offset + count > source.size:
            raise OSError(f"its {count} bytes at {offset} lie beyond the end of the file ({source.size} bytes)")
        if count > limit:
            raise OSError(f"its {count} bytes are more than such a tile can take")
        data = source.read(offset, count)
        if len(data) != count:
            raise OSError(f"only {len(data)} of its {count} bytes could be read")
        return data
