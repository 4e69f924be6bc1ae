"""Tiled and striped TIFF and BigTIFF: Aperio SVS, OME-TIFF, generic pyramids, COG.

tifffile parses the directories, and a tile is one positioned read of its bytes. The file handle is ours, so
threads and forked processes share nothing that moves. Simplified: the tag Orientation is ignored, as
OpenSlide does.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import wanted_samples
from pyrtrav.pyramid.remote import RemoteFile
from pyrtrav.pyramid.source import BlockFile, Source, Span, is_url, open_source
from pyrtrav.pyramid.tiff_decode import SLOW, decode_segment, natural_colors, samples_together
from pyrtrav.pyramid.tiff_levels import Directory, find_levels, is_tiff
from pyrtrav.pyramid.tiff_words import read_ome, read_properties, read_samples, refuse_vendors
from pyrtrav.pyramid.tiles import Key, Level, RawTile

# tifffile reports damage in its log; ours is in the exceptions.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


class TiffPyramid(Pyramid):
    """A TIFF file."""

    backend: ClassVar[str] = "tiff"
    _source: Source | None = None

    def _file_identity(self) -> tuple[Hashable, ...]:
        if not is_url(self.path):
            return super()._file_identity()
        # Opened here: the first answer says which file it is.
        self.prefetches = True
        self._source = remote = RemoteFile(self.path, self.cost)
        return remote.identity

    def _open(self) -> None:
        if not is_url(self.path):
            self._parse(self.path)
            self._source = open_source(self.path)
            return
        assert self._source is not None
        if not is_tiff(self._source.read(0, 4)):
            raise UnsupportedFormatError(
                f"{self.path}: is no TIFF; of URLs only TIFF and OME-Zarr are read, download it first"
            )
        file = BlockFile(self._source)
        try:
            self._parse(file)
        except Exception:
            if file.failure is None:
                raise
        if isinstance(file.failure, PyramidError):
            raise file.failure
        if file.failure is not None:
            raise PyramidError(f"{self.path}: {file.failure}") from file.failure

    def _parse(self, file: Any) -> None:
        """Read the directories of a path or of a ``BlockFile``."""
        try:
            with tifffile.TiffFile(file, _multifile=False) as tif:
                first_page: Any = tif.pages[0] if len(tif.pages) else None
                if first_page is not None and not isinstance(file, str):
                    refuse_vendors(self.path, tif)
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
        self.mpp = self._believed_mpp(properties.get("mpp"))

    def _is_slow(self, level: int) -> bool:
        """Behind a URL whose server tells one state of a file from another, or in a codec of milliseconds a tile."""
        if is_url(self.path):
            return bool(self._identity[0])
        return self._directories[level].pages[0].compression in SLOW

    def _close(self) -> None:
        source, self._source, self._directories = getattr(self, "_source", None), None, []
        if source is not None:
            source.close()

    def _prefetch(self, keys: Sequence[Key]) -> None:
        assert self._source is not None  # open while it is read
        spans: list[Span] = []
        for level, column, row in keys:
            directory = self._directories[level]
            for plane in self._planes:
                with suppress(ValueError):  # damage is told where the tile is decoded
                    spans += [span for span in directory.spans(plane, column, row) if span[1] <= directory.limit]
        self._source.prefetch(spans)

    def _most_shrink(self, level: int) -> int:
        return 8 if self._directories[level].is_plain_jpeg else 1

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        directory = self._directories[level]
        if directory.jpeg is not None and directory.is_plain_jpeg:  # the usual case, without a detour
            index = row * directory.columns + column
            offset, length = directory.offsets.item(index), directory.counts.item(index)
            if not offset or not length:
                return None
            data = self._read_bytes(offset, length, directory.limit)
            return RawTile(directory.jpeg.decode(data, directory.tile_size, shrink), length)
        stored, decoded = 0, {}
        for plane in self._planes:
            spans = directory.spans(plane, column, row)
            if spans:
                parts = [self._read_bytes(offset, count, directory.limit) for offset, count in spans]
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                decoded[plane] = self._decode_plane(directory, plane, data, (column, row))
                stored += len(data)
        if not decoded:
            return None  # a sparse tile
        samples = next(iter(decoded.values()))
        if len(directory.pages) > 1:
            samples = np.zeros((*samples.shape[:2], len(directory.pages)), samples.dtype)
            for plane, values in decoded.items():
                samples[..., plane] = values[..., 0]
        return RawTile(natural_colors(samples, directory.pages[0], directory.colormap), stored)

    def _decode_plane(self, directory: Directory, plane: int, data: bytes, place: tuple[int, int]) -> NDArray[Any]:
        size = directory.tile_size
        column, row = place
        if directory.strip_rows is not None:
            return self._bare_samples(directory, data, column)
        if directory.jpeg is not None:
            return directory.jpeg.decode(data, size)
        return decode_segment(directory.pages[plane], data, row * directory.columns + column, size)

    def _bare_samples(self, directory: Directory, data: bytes, column: int) -> NDArray[Any]:
        page = directory.pages[0]
        stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        width = min(directory.tile_width, directory.width - column * directory.tile_width)
        return np.frombuffer(data, stored).reshape(-1, width, samples_together(page)).astype(page.dtype, copy=False)

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
