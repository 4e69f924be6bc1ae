"""Tiled and striped TIFF and BigTIFF: Aperio SVS, OME-TIFF, generic pyramids, COG.

tifffile parses the directories; levels are chosen by our own rule (its series lose levels). A tile is one positioned
read of its bytes, decoded by simplejpeg (8-bit JPEG, strict: a truncated tile is an error, not gray) or imagecodecs
through tifffile. The file handle is ours, so threads and forked processes share nothing that moves.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import Samples, Window
from pyrtrav.pyramid.tiles import MAX_TILE_PIXELS, Level, RawTile, plausible_mpp

# tifffile reports damage in its log; ours is in the exceptions.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PARSING_ERRORS = (
    tifffile.TiffFileError,
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What tifffile and the codecs raise on damaged files."""

MINISWHITE, RGB, PALETTE, SEPARATED, YCBCR = 0, 2, 3, 5, 6
JPEG = 7
# JPEG 2000 of Aperio in YCbCr, which imagecodecs leaves unconverted; OpenSlide reads it.
APERIO_JP2000_YCBCR = 33003
# Codecs that give RGB whatever the photometric tag says.
RGB_CODECS = {6, 7, 33005, 34712, 34887, 34892, 33007, 50001, 50002, 52546}

_MICROMETRES = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4}
_PER_UNIT = {2: 25_400.0, 3: 10_000.0}


@dataclass(frozen=True)
class _Directory:
    """What is kept of one TIFF directory: the table of its tiles and how to decode them."""

    page: Any
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    width: int
    height: int
    tile_width: int
    tile_height: int
    planes: int

    @property
    def tiles(self) -> int:
        return -(-self.width // self.tile_width) * -(-self.height // self.tile_height)


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffPyramid(Pyramid):
    """A TIFF file; its levels are the tiled main-chain directories and SubIFDs of the same aspect."""

    backend: ClassVar[str] = "tiff"

    def _open(self) -> None:
        self._fd = -1
        try:
            with tifffile.TiffFile(self.path, _multifile=False) as tif:
                pages = list(tif.pages)
                if not pages:
                    raise CorruptImageError(self.path, "the TIFF holds no directory; it may be truncated")
                _check_chain(self.path, tif, pages[-1])
                directories = _choose_levels(self.path, pages)
                self.properties = _properties(tif, directories[0].page)
        except CorruptImageError:
            raise
        except UnsupportedFormatError:
            raise
        except PARSING_ERRORS as error:
            raise CorruptImageError(self.path, f"not a readable TIFF: {_short(error)}") from error
        self._directories = directories
        first = directories[0]
        self.levels = tuple(
            Level(
                i,
                d.width,
                d.height,
                first.width / d.width,
                first.height / d.height,
                d.tile_width,
                d.tile_height,
            )
            for i, d in enumerate(directories)
        )
        self.bounds = Region(0, 0, first.width, first.height)
        self.mpp = plausible_mpp(self.properties.get("mpp"))
        self.samples = _samples(self.path, first.page, self.properties)
        self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._size = os.fstat(self._fd).st_size

    def _close(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def _decode_tile(self, level: int, column: int, row: int) -> RawTile | None:
        directory = self._directories[level]
        index = row * self.levels[level].columns + column
        planes, stored = [], 0
        for plane in range(directory.planes):
            number = plane * directory.tiles + index
            count = int(directory.counts[number])
            if count == 0 or int(directory.offsets[number]) == 0:
                return None  # a sparse tile
            try:
                data = self._pread(int(directory.offsets[number]), count)
                planes.append(self._decode(directory, data, number))
            except PARSING_ERRORS as error:
                raise CorruptImageError(
                    self.path, _short(error), level=level, column=column, row=row
                ) from error
            stored += count
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
        return RawTile(_colors(samples, directory.page), stored)

    def _pread(self, offset: int, count: int) -> bytes:
        if self._fd < 0:
            raise OSError("the pyramid is closed")
        if offset + count > self._size:
            raise OSError(f"its {count} bytes at {offset} lie beyond the end of the file ({self._size} bytes)")
        data = os.pread(self._fd, count, offset)
        if len(data) != count:
            raise OSError(f"only {len(data)} of its {count} bytes could be read")
        return data

    def _decode(self, directory: _Directory, data: bytes, number: int) -> NDArray[Any]:
        """Decode one segment to (h, w, samples)."""
        page = directory.page
        if page.compression == JPEG and page.bitspersample == 8 and page.samplesperpixel in (1, 3):
            samples = decode_jpeg(data, page.jpegtables, page.photometric)
        else:
            samples = page.decode(data, number, jpegtables=page.jpegtables)[0][0]
        row, column = divmod(number % directory.tiles, -(-directory.width // directory.tile_width))
        needed = (
            min(directory.tile_height, directory.height - row * directory.tile_height),
            min(directory.tile_width, directory.width - column * directory.tile_width),
        )
        height, width = samples.shape[:2]
        if not (needed[0] <= height <= directory.tile_height and needed[1] <= width <= directory.tile_width):
            raise ValueError(
                f"the tile is {width} x {height}, but {directory.tile_width} x {directory.tile_height} is declared"
            )
        return samples.reshape(height, width, -1)


def decode_jpeg(data: bytes, tables: bytes | None, photometric: int) -> NDArray[np.uint8]:
    """Decode one JPEG tile to (h, w, 1 or 3); a damaged or truncated stream is a ValueError.

    The TIFF tag decides between RGB and YCbCr, as in OpenSlide, by an Adobe marker that is put in front. A JFIF marker
    overrules it in libjpeg, and so does subsampled chroma here: both mean YCbCr whatever a wrong tag says.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("the tile is no JPEG stream")
    body = data[2:]
    shared = b"" if not tables else tables[2:-2]
    if photometric in (RGB, YCBCR):
        marker = _adobe_marker(0 if photometric == RGB else 1)
    else:
        marker = b""
    stream = b"\xff\xd8" + marker + shared + body
    _, _, space, subsampling = simplejpeg.decode_jpeg_header(stream)
    if space == "RGB" and subsampling not in ("444", ""):
        stream = b"\xff\xd8" + _adobe_marker(1) + shared + body
        space = "YCbCr"
    gray = photometric not in (RGB, YCBCR)
    if (space == "Gray") != gray or space in ("CMYK", "YCCK"):
        raise ValueError(f"the JPEG stream is {space}, which is not what the TIFF declares")
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(stream, "GRAY" if gray else "RGB")
    return pixels


def _adobe_marker(transform: int) -> bytes:
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__


def _check_chain(path: str, tif: tifffile.TiffFile, last: Any) -> None:
    """A chain of directories that ends outside the file has lost levels: say so instead of reading what is left."""
    layout, handle = tif.tiff, tif.filehandle
    handle.seek(last.offset)
    tags = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))[0]
    handle.seek(last.offset + layout.tagnosize + tags * layout.tagsize)
    pointer = handle.read(layout.offsetsize)
    if len(pointer) < layout.offsetsize or struct.unpack(layout.offsetformat, pointer)[0] != 0:
        raise CorruptImageError(path, "its chain of directories is broken; the file may be truncated")


def _choose_levels(path: str, pages: Sequence[Any]) -> list[_Directory]:
    """The largest tiled page, and every other one and SubIFD of its aspect, largest first; else the first page."""
    tiled = [page for page in pages if page.is_tiled and page.imagewidth and page.imagelength]
    base = max(tiled, key=lambda page: page.imagewidth * page.imagelength, default=pages[0])
    others = tiled if tiled else [page for page in pages[1:] if page.subfiletype & 1]
    others = [*others, *(page for page in base.pages or () if page.is_tiled == base.is_tiled)]
    chosen = {base.imagewidth: base}
    for page in others:
        if _same_image(base, page):
            chosen.setdefault(page.imagewidth, page)
    return [_directory(path, chosen[width]) for width in sorted(chosen, reverse=True)]


def _same_image(base: Any, page: Any) -> bool:
    if not 0 < page.imagewidth < base.imagewidth or not page.imagelength:
        return False
    expected = base.imagelength * page.imagewidth / base.imagewidth
    alike = all(
        getattr(base, name) == getattr(page, name) for name in ("samplesperpixel", "bitspersample", "planarconfig")
    )
    return alike and abs(page.imagelength - expected) <= max(1.0, 0.02 * expected)


def _directory(path: str, page: Any) -> _Directory:
    if page.compression == APERIO_JP2000_YCBCR:
        raise UnsupportedFormatError(f"{path}: Aperio JPEG 2000 in YCbCr is left to the backend `slide`")
    width, height = int(page.imagewidth), int(page.imagelength)
    tile_width = int(page.tilewidth) if page.is_tiled else width
    tile_height = int(page.tilelength) if page.is_tiled else int(page.rowsperstrip or height)
    if min(width, height, tile_width, tile_height) < 1:
        raise CorruptImageError(path, f"impossible size: image {width} x {height}, tile {tile_width} x {tile_height}")
    if tile_width * tile_height > MAX_TILE_PIXELS:
        what = "tiles" if page.is_tiled else "strips"
        raise UnsupportedFormatError(
            f"{path}: its {what} of {tile_width} x {tile_height} cannot be read lazily (the limit is "
            f"{MAX_TILE_PIXELS >> 20} Mpx a tile); make a tiled pyramid of it with `pyrtrav convert`"
        )
    if page.imagedepth != 1:
        raise UnsupportedFormatError(f"{path}: volumes (ImageDepth {page.imagedepth}) are not supported")
    planes = int(page.samplesperpixel) if page.planarconfig == 2 else 1
    directory = _Directory(
        page,
        np.asarray(page.dataoffsets, np.uint64),
        np.asarray(page.databytecounts, np.uint64),
        width,
        height,
        tile_width,
        tile_height,
        planes,
    )
    if min(directory.offsets.size, directory.counts.size) < directory.tiles * planes:
        raise CorruptImageError(path, f"its table lists {directory.offsets.size} of {directory.tiles * planes} tiles")
    # The arrays hold them now; as Python integers a table of 150,000 tiles takes 10 MB.
    page.dataoffsets = page.databytecounts = ()
    for code in (273, 279, 324, 325):
        if code in page.tags:
            page.tags[code].value = ()
    return directory


def _samples(path: str, page: Any, properties: dict[str, str] | Any) -> Samples:
    if page.dtype is None:
        raise UnsupportedFormatError(f"{path}: its sample type ({page.bitspersample} bits) is not supported")
    photometric, count = int(page.photometric), int(page.samplesperpixel)
    if photometric == PALETTE:
        return Samples(3, np.dtype(np.uint8))
    if photometric == SEPARATED:
        if count < 4 or page.dtype != np.uint8:
            raise UnsupportedFormatError(f"{path}: separated inks that are not 8-bit CMYK are not supported")
        return Samples(3, np.dtype(np.uint8))
    if photometric == YCBCR and int(page.compression) not in RGB_CODECS:
        raise UnsupportedFormatError(f"{path}: YCbCr samples outside JPEG are not supported")
    if photometric > YCBCR and photometric not in (32803, 34892):
        raise UnsupportedFormatError(f"{path}: its colour space (photometric {photometric}) is not supported")
    extra = tuple(int(v) for v in page.extrasamples or ())
    window = _declared_window(properties)
    if len(extra) == 1 and extra[0] in (1, 2) and count > 1:
        return Samples(count - 1, page.dtype, "premultiplied" if extra[0] == 1 else "straight", window)
    return Samples(count, page.dtype, "none", window)


def _declared_window(properties: dict[str, str]) -> Window | None:
    if "sample-min" not in properties or "sample-max" not in properties:
        return None
    low, high = float(properties["sample-min"]), float(properties["sample-max"])
    return (low, high) if high > low else None


def _colors(samples: NDArray[Any], page: Any) -> NDArray[Any]:
    """Undo what only TIFF does: palettes, inks, white as zero."""
    photometric = int(page.photometric)
    if photometric == PALETTE:
        table: NDArray[np.uint8] = (np.asarray(page.colormap) >> 8).astype(np.uint8).reshape(3, -1)
        return np.moveaxis(table[:, samples[..., 0]], 0, -1)
    if photometric == SEPARATED:
        inks = 255 - samples[..., :4].astype(np.uint16)
        return np.asarray((inks[..., :3] * inks[..., 3:4] + 127) // 255).astype(np.uint8)
    if photometric == MINISWHITE:
        return ~samples if samples.dtype.kind in "bu" else -samples
    return samples


def _properties(tif: tifffile.TiffFile, page: Any) -> dict[str, str]:
    """The file's own words: description, resolution, and mpp from the most specific of them."""
    description = page.description or ""
    found = {"format": "bigtiff" if tif.is_bigtiff else "tiff", "description": description}
    for name, code in (("sample-min", 340), ("sample-max", 341)):
        value = page.tags.valueof(code)
        if value is not None:
            found[name] = str(value[0] if isinstance(value, tuple) else value)
    if description.startswith("Aperio"):
        found["vendor"] = "aperio"
        pairs = (part.split("=", 1) for part in description.split("|")[1:] if "=" in part)
        found |= {f"aperio.{key.strip()}": value.strip() for key, value in pairs}
        mpp = found.get("aperio.MPP")
    elif "<OME" in description[:1000]:
        found["vendor"] = "ome"
        mpp = _ome_mpp(description)
    else:
        mpp = _resolution_mpp(page)
    if mpp is not None:
        found["mpp"] = str(mpp)
    return found


def _ome_mpp(description: str) -> float | None:
    try:
        pixels = ElementTree.fromstring(description).find("{*}Image/{*}Pixels")
        if pixels is None or "PhysicalSizeX" not in pixels.attrib:
            return None
        unit = _MICROMETRES.get(pixels.attrib.get("PhysicalSizeXUnit", "µm"), math.nan)
        return float(pixels.attrib["PhysicalSizeX"]) * unit
    except (ElementTree.ParseError, ValueError):
        return None


def _resolution_mpp(page: Any) -> float | None:
    value, unit = page.tags.valueof(282), page.tags.valueof(296)
    if not isinstance(value, tuple) or len(value) != 2 or 0 in value:
        return None
    per_unit = _PER_UNIT.get(int(unit) if unit is not None else 2)
    return None if per_unit is None else per_unit * value[1] / value[0]
