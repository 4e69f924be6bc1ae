"""Which directories of a TIFF are the levels of its image.

Our own rule, since tifffile's series lose levels: the largest tiled directory of the main chain, and every
other one and each of its SubIFDs that shows the same image smaller (same samples, same aspect within 2 %),
largest first. Without tiles: the first directory and those after it that are marked as reduced.

In an OME-TIFF whose channels are directories of their own, the channels of the first plane are read as the
samples of one image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.source import Span
from pyrtrav.pyramid.tiff_decode import (
    APERIO_JPEG_2000_YCBCR,
    LERC_PARAMETERS,
    PALETTE,
    RGB,
    SUPPORTED,
    YCBCR,
    JpegTiles,
    jpeg_tiles,
    samples_together,
)
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES, MAX_TILE_PIXELS

REDUCED, MASK = 1, 4
"""Bits of the tag NewSubfileType."""

BARE_TILE = 256
"""Side of the tiles that uncompressed strips are read in."""

_UNCOMPRESSED = 1
_SLACK_BYTES = 1 << 20
_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 322, 323
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
# Types of tags that are whole numbers.
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Directory:
    """One level: where its tiles are stored and how they are decoded."""

    pages: tuple[Any, ...]
    """tifffile's, one for each plane."""
    offsets: NDArray[np.unsignedinteger[Any]]
    counts: NDArray[np.unsignedinteger[Any]]
    """Both (planes, tiles or strips); samples that are stored together are one plane."""
    width: int
    height: int
    tile_width: int
    tile_height: int
    tile_bytes: int
    """Of one plane's tile, decoded."""
    colormap: NDArray[np.uint8] | None
    jpeg: JpegTiles | None
    """What decodes its tiles; None where imagecodecs does."""
    strip_rows: int | None
    """Rows of a strip, where its pixels lie bare in the file: then tiles are cut out of the strips."""

    is_plain_jpeg: bool
    """Whether one JPEG stream is a tile, and its samples are the image's."""

    @cached_property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @cached_property
    def tile_size(self) -> tuple[int, int]:
        return self.tile_width, self.tile_height

    @cached_property
    def limit(self) -> int:
        """Stored bytes of a tile that are believed: no codec doubles one."""
        return 2 * self.tile_bytes + _SLACK_BYTES

    def spans(self, plane: int, column: int, row: int) -> list[Span]:
        """Where a tile's bytes lie; nowhere where the tile is declared empty.

        Raises:
            ValueError: a strip is shorter than its rows.
        """
        if self.strip_rows is None:
            index = row * self.columns + column
            offset, count = int(self.offsets[plane, index]), int(self.counts[plane, index])
            return [(offset, count)] if offset and count else []
        rows = range(row * self.tile_height, min((row + 1) * self.tile_height, self.height))
        pixel = self.tile_bytes // (self.tile_width * self.tile_height)
        left, length = column * self.tile_width, min(self.tile_width, self.width - column * self.tile_width)
        spans: list[Span] = []
        for y in rows:
            strip, inside = divmod(y, self.strip_rows)
            offset, count = int(self.offsets[plane, strip]), int(self.counts[plane, strip])
            if not offset or not count:
                return []
            if (inside + 1) * self.width * pixel > count:
                raise ValueError(f"strip {strip} holds {count:,} bytes, which are fewer than its rows take")
            start = offset + (inside * self.width + left) * pixel
            if spans and sum(spans[-1]) == start:  # full rows lie one after the other
                spans[-1] = spans[-1][0], spans[-1][1] + length * pixel
            else:
                spans.append((start, length * pixel))
        return spans


def find_levels(path: str, tif: tifffile.TiffFile, channels: Sequence[int] = range(1)) -> list[Directory]:
    """Return the levels, largest first.

    Args:
        channels: the numbers of the main chain's directories that are the channels of one image.

    Raises:
        CorruptImageError: the tables are impossible or cut short.
        UnsupportedFormatError: a compression that is not read, or tiles too large to be read lazily.
    """
    pages: list[Any] = list(tif.pages)
    if not pages:
        raise CorruptImageError(path, "the TIFF holds no directory; it may be truncated")
    _check_chain(path, tif, pages[-1])
    check_tile_sizes(path, pages)
    if len(channels) > 1 and channels[-1] < len(pages):
        chains = [_levels_of(pages[number], ()) for number in channels]
        if len({tuple(map(_layout, chain)) for chain in chains}) == 1:
            return [_directory(path, planes) for planes in zip(*chains, strict=True)]
    tiled = [page for page in pages if page.is_tiled and page.imagewidth and page.imagelength]
    if tiled:
        return [_directory(path, (page,)) for page in _levels_of(max(tiled, key=_area), tiled)]
    reduced = [page for page in pages[1:] if int(page.subfiletype) & REDUCED]
    return [_directory(path, (page,)) for page in _levels_of(pages[0], reduced)]


def _check_chain(path: str, tif: tifffile.TiffFile, last: Any) -> None:
    """A chain of directories that ends outside the file has lost levels: say so, do not read what is left."""
    layout, handle = tif.tiff, tif.filehandle
    handle.seek(last.offset)
    tags = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))[0]
    handle.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
    pointer = handle.read(layout.offsetsize)
    if len(pointer) < layout.offsetsize or struct.unpack(layout.offsetformat, pointer)[0] != 0:
        raise CorruptImageError(path, "its chain of directories is broken; the file may be truncated")


def check_tile_sizes(path: str, pages: Sequence[Any]) -> None:
    """Raise where a tiled directory has an impossible size, or tiles too large to be read lazily."""
    for page in pages:
        if _TILE_WIDTH not in page.tags:
            continue
        width, height, tile_width, tile_height = (
            int(page.tags.valueof(code, 0)) for code in (_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH)
        )
        if min(width, height, tile_width, tile_height) < 1:
            raise CorruptImageError(path, f"impossible size: {width} x {height}, tile {tile_width} x {tile_height}")
        if tile_width * tile_height > MAX_TILE_PIXELS:
            raise _too_large(path, "tiles", tile_width, tile_height)


def _too_large(path: str, what: str, width: int, height: int) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"{path}: its {what} of {width} x {height} cannot be read lazily (the limit is "
        f"{MAX_TILE_PIXELS >> 20} Mpx each); make a tiled pyramid of it with `pyrtrav convert`"
    )


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


def _levels_of(base: Any, others: Sequence[Any]) -> list[Any]:
    inner = [page for page in base.pages or () if page.is_tiled == base.is_tiled]
    chosen = {base.imagewidth: base}
    for page in (*others, *inner):
        if _shows_same(base, page):
            chosen.setdefault(page.imagewidth, page)
    return [chosen[width] for width in sorted(chosen, reverse=True)]


def _shows_same(base: Any, page: Any) -> bool:
    """Whether a page is the base's image, smaller; a mask or a label is not."""
    if not 0 < page.imagewidth < base.imagewidth or not page.imagelength or int(page.subfiletype) & MASK:
        return False
    expected = base.imagelength * page.imagewidth / base.imagewidth
    colors = {int(base.photometric), int(page.photometric)}
    return (
        _samples(base) == _samples(page)
        and (len(colors) == 1 or colors == {RGB, YCBCR})
        and abs(page.imagelength - expected) <= max(1.0, 0.02 * expected)
    )


def _samples(page: Any) -> tuple[Any, ...]:
    return page.samplesperpixel, page.bitspersample, page.sampleformat, page.planarconfig


def _layout(page: Any) -> tuple[Any, ...]:
    """What the channels of one image have in common."""
    return (
        *_samples(page),
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        page.rowsperstrip,
    )


def _directory(path: str, pages: tuple[Any, ...]) -> Directory:
    page = pages[0]
    _check_supported(path, page)
    width, height = int(page.imagewidth), int(page.imagelength)
    tile_width = int(page.tilewidth) if page.is_tiled else width
    tile_height = int(page.tilelength) if page.is_tiled else min(int(page.rowsperstrip or height), height)
    if min(width, height, tile_width, tile_height) < 1:
        raise CorruptImageError(path, f"impossible size: image {width} x {height}, tile {tile_width} x {tile_height}")
    stored = -(-width // tile_width) * -(-height // tile_height)
    strip_rows = tile_height if _is_bare(page) else None
    if strip_rows is not None:
        tile_width, tile_height = min(width, BARE_TILE), min(height, BARE_TILE)
    tile_bytes = tile_width * tile_height * samples_together(page) * np.dtype(page.dtype).itemsize
    if tile_width * tile_height > MAX_TILE_PIXELS or tile_bytes > MAX_TILE_BYTES:
        raise _too_large(path, "tiles" if page.is_tiled else "strips", tile_width, tile_height)
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    jpeg = jpeg_tiles(page)
    offsets = [_table(path, each, (_TILE_OFFSETS, _STRIP_OFFSETS), stored * planes) for each in pages]
    counts = [_table(path, each, (_TILE_COUNTS, _STRIP_COUNTS), stored * planes) for each in pages]
    for each in pages:
        _forget_tables(each)
        each.tags.valueof(LERC_PARAMETERS)  # read now, while the file is open
    return Directory(
        tuple(page for page in pages for _ in range(planes)),
        _together(offsets).reshape(-1, stored),
        _together(counts).reshape(-1, stored),
        width,
        height,
        tile_width,
        tile_height,
        tile_bytes,
        _colormap(page),
        jpeg,
        strip_rows,
        jpeg is not None and jpeg.is_plain and planes * len(pages) == 1,
    )


def _is_bare(page: Any) -> bool:
    """Whether pixels lie in strips as they are: then any rectangle of them can be read alone."""
    whole_bytes = np.dtype(page.dtype).itemsize * 8 == page.bitspersample
    return not page.is_tiled and int(page.compression) == _UNCOMPRESSED and whole_bytes and int(page.fillorder) == 1


def _check_supported(path: str, page: Any) -> None:
    if page.compression == APERIO_JPEG_2000_YCBCR:
        raise UnsupportedFormatError(f"{path}: Aperio JPEG 2000 in YCbCr is left to the backend `slide`")
    if int(page.compression) not in SUPPORTED:
        raise UnsupportedFormatError(f"{path}: its compression ({int(page.compression)}) is not supported")
    if page.dtype is None or np.dtype(page.dtype).kind not in "buif" or not isinstance(page.bitspersample, int):
        raise UnsupportedFormatError(f"{path}: its sample type ({page.bitspersample} bits) is not supported")
    if page.imagedepth != 1:
        raise UnsupportedFormatError(f"{path}: volumes (ImageDepth {page.imagedepth}) are not supported")


def _table(path: str, page: Any, codes: tuple[int, int], needed: int) -> NDArray[np.unsignedinteger[Any]]:
    """The first ``needed`` entries of a table, under the one of two tags that the page has."""
    tag = page.tags.get(codes[0]) or page.tags.get(codes[1])
    listed = 0 if tag is None else int(tag.count)
    if listed < needed or tag.dtype not in _INTEGERS:
        raise CorruptImageError(path, f"its table lists {listed:,} of {needed:,} tiles")
    handle, dtype = page.parent.filehandle, np.dtype(page.parent.byteorder + _INTEGERS[tag.dtype])
    # As arrays from the start: of Python's integers a table of 150,000 tiles takes 10 MB and 10 ms.
    handle.seek(tag.valueoffset)
    table = np.frombuffer(handle.read(needed * dtype.itemsize), dtype)
    if table.size < needed:
        raise CorruptImageError(path, f"the file ends within its table of {needed:,} tiles; it may be truncated")
    return table.astype(dtype.newbyteorder("="), copy=False)


def _together(tables: list[NDArray[Any]]) -> NDArray[Any]:
    return tables[0] if len(tables) == 1 else np.concatenate(tables)


def _forget_tables(page: Any) -> None:
    """Our arrays hold them now."""
    page.dataoffsets = page.databytecounts = ()
    for code in (_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS):
        if code in page.tags:
            page.tags[code].value = ()


def _colormap(page: Any) -> NDArray[np.uint8] | None:
    """The palette as (entries, 3), 8 bits."""
    if int(page.photometric) != PALETTE:
        return None
    table = np.asarray(page.colormap)
    return np.ascontiguousarray((table.reshape(3, -1) >> 8).astype(np.uint8).T)
