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
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.tiff_decode import APERIO_JPEG_2000_YCBCR, PALETTE, RGB, SUPPORTED, YCBCR
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES, MAX_TILE_PIXELS

REDUCED, MASK = 1, 4
"""Bits of the tag NewSubfileType."""

_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH = 256, 257, 322, 323


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Directory:
    """One level: where its tiles are stored and how they are decoded."""

    pages: tuple[Any, ...]
    """tifffile's, one for each plane."""
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    """Both (planes, tiles); samples that are stored together are one plane."""
    width: int
    height: int
    tile_width: int
    tile_height: int
    tile_bytes: int
    """Of one plane's tile, decoded."""
    colormap: NDArray[np.uint8] | None


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
    together = int(page.samplesperpixel) if page.planarconfig == 1 else 1
    tile_bytes = tile_width * tile_height * together * np.dtype(page.dtype).itemsize
    if tile_width * tile_height > MAX_TILE_PIXELS or tile_bytes > MAX_TILE_BYTES:
        raise _too_large(path, "tiles" if page.is_tiled else "strips", tile_width, tile_height)
    tiles = -(-width // tile_width) * -(-height // tile_height)
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    offsets = [_table(path, each, each.dataoffsets, tiles * planes) for each in pages]
    counts = [_table(path, each, each.databytecounts, tiles * planes) for each in pages]
    for each in pages:
        _forget_tables(each)
    return Directory(
        tuple(page for page in pages for _ in range(planes)),
        np.concatenate(offsets).reshape(-1, tiles),
        np.concatenate(counts).reshape(-1, tiles),
        width,
        height,
        tile_width,
        tile_height,
        tile_bytes,
        _colormap(page),
    )


def _check_supported(path: str, page: Any) -> None:
    if page.compression == APERIO_JPEG_2000_YCBCR:
        raise UnsupportedFormatError(f"{path}: Aperio JPEG 2000 in YCbCr is left to the backend `slide`")
    if int(page.compression) not in SUPPORTED:
        raise UnsupportedFormatError(f"{path}: its compression ({int(page.compression)}) is not supported")
    if page.dtype is None or np.dtype(page.dtype).kind not in "buif" or not isinstance(page.bitspersample, int):
        raise UnsupportedFormatError(f"{path}: its sample type ({page.bitspersample} bits) is not supported")
    if page.imagedepth != 1:
        raise UnsupportedFormatError(f"{path}: volumes (ImageDepth {page.imagedepth}) are not supported")


def _table(path: str, page: Any, values: Sequence[int], needed: int) -> NDArray[np.uint64]:
    table = np.asarray(values, np.uint64)
    if table.size < needed:
        raise CorruptImageError(path, f"its table lists {table.size:,} of {needed:,} tiles")
    return table[:needed]


def _forget_tables(page: Any) -> None:
    """Our arrays hold them now; as Python integers a table of 150,000 tiles takes 10 MB."""
    page.dataoffsets = page.databytecounts = ()
    for code in (273, 279, 324, 325):
        if code in page.tags:
            page.tags[code].value = ()


def _colormap(page: Any) -> NDArray[np.uint8] | None:
    """The palette as (entries, 3), 8 bits."""
    if int(page.photometric) != PALETTE:
        return None
    table = np.asarray(page.colormap)
    return np.ascontiguousarray((table.reshape(3, -1) >> 8).astype(np.uint8).T)
