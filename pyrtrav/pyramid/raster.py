"""Flat images through Pillow: PNG, JPEG, WebP, BMP, GIF and others.

The image is one tile: decoded whole when a pixel is first needed, with half-size levels computed from it.
Simplified: the first frame only; EXIF orientation is applied, so that sizes are those that a viewer shows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO, ClassVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.array import halve
from pyrtrav.pyramid.base import MAX_WINDOW_PIXELS, Pyramid
from pyrtrav.pyramid.pixels import Samples, Window, display_window
from pyrtrav.pyramid.tiles import Key, Level, RawTile, Tile

MAX_PIXELS = 64_000_000
"""Larger images are refused: they would be decoded whole for a glance."""

SMALLEST_SIDE = 64
"""Half-size levels are computed until the longer side is at most this."""

FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX", "SGI", "QOI",
)  # fmt: skip
"""Formats that are asked for. Pillow's others hand the file to external programs, or hold no photograph."""

_ORIENTATION, _TILE_WIDTH = 274, 322
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""


@dataclass(frozen=True)
class _Header:
    """What the file says before a pixel is decoded."""

    format: str
    mode: str
    target: str
    """The mode that the pixels are converted to: one that numpy and PixelRule know."""
    size: tuple[int, int]
    orientation: int
    frames: int
    tiled: bool
    """Of a TIFF."""


class RasterPyramid(Pyramid):
    """A flat image as a pyramid of one stored tile."""

    backend: ClassVar[str] = "raster"

    def _open(self) -> None:
        self._decoding = Lock()
        self._kept: dict[Key, Tile] = {}
        self._first: RawTile | None = None
        self._stored_bytes = os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            header = self._header = _read_header(self.path, file)
        width, height = header.size[::-1] if header.orientation >= 5 else header.size
        if width * height > MAX_PIXELS:
            raise UnsupportedFormatError(
                f"{self.path}: {width} x {height} pixels would be decoded whole for a glance (the limit is "
                f"{MAX_PIXELS // 1_000_000} Mpx); make a tiled pyramid of it: pyrtrav convert IMAGE OUT.tif"
            )
        self.levels = tuple(_halved_levels(width, height))
        self.mpp, self.bounds = None, Region(0, 0, width, height)
        self.properties = {
            "format": header.format,
            "mode": header.mode,
            "frames": str(header.frames),
            "orientation": f"{header.orientation} (applied)",
        }
        self.samples = _SAMPLES[header.target]

    def _close(self) -> None:
        self._kept, self._first = {}, None

    @property
    def tiles_total(self) -> int:
        return 1

    def _tile(self, key: Key) -> Tile:
        # One thread decodes; the others wait for it.
        with self._decoding:
            self._count_distinct((0, 0, 0))
            return self._level_tile(key)

    def _level_tile(self, key: Key) -> Tile:
        tile = self._kept.get(key) or self._cache.get((self._token, key))
        if tile is not None:
            return tile
        if key[0] == 0:
            raw, self._first = self._first or self._raw_tile((0, 0, 0)), None
            assert raw is not None  # a flat image has no empty tile
            tile = Tile(*self.pixel_rule.apply(raw.samples))
        else:
            finer = self._level_tile((key[0] - 1, 0, 0))
            valid = None
            if finer.valid is not None:  # where more than half of the pixels are
                valid = halve(finer.valid[:, :, None] * np.uint8(255))[:, :, 0] > 128
            tile = Tile(halve(finer.pixels), valid)
        if tile.nbytes > self._cache.max_bytes // 2:
            self._kept[key] = tile
        else:
            self._cache.put((self._token, key), tile)
        return tile

    def _percentile_window(self) -> Window | None:
        """Percentiles of the image, which is kept for the first read: it is decoded once."""
        self._first = raw = self._raw_tile((0, 0, 0))
        assert raw is not None  # a flat image has no empty tile
        return display_window([raw.samples[:: 1 + raw.samples.size // MAX_WINDOW_PIXELS].ravel()])

    def _decode_tile(self, level: int, column: int, row: int) -> RawTile:
        """The whole image, whichever level is asked for: it is what the file holds."""
        header = self._header
        try:
            with open(self.path, "rb") as file:
                image: Image.Image = _identify(file)
                image.load()
                if image.mode != header.target:
                    image = image.convert(header.target)
                if header.orientation in _TURNS:
                    image = image.transpose(_TURNS[header.orientation])
                samples = np.asarray(image)
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
            raise CorruptImageError(self.path, f"{type(error).__name__}: {error}", level=0, column=0, row=0) from error
        if samples.shape[:2] != (self.levels[0].height, self.levels[0].width):
            raise CorruptImageError(self.path, "its size is not what its header says", level=0, column=0, row=0)
        return RawTile(samples.reshape(*samples.shape[:2], -1), self._stored_bytes)


_SAMPLES = {
    "L": Samples(1, np.dtype(np.uint8)),
    "LA": Samples(1, np.dtype(np.uint8), "straight"),
    "RGB": Samples(3, np.dtype(np.uint8)),
    "RGBA": Samples(3, np.dtype(np.uint8), "straight"),
    "I;16": Samples(1, np.dtype(np.uint16)),
    "I": Samples(1, np.dtype(np.int32)),
    "F": Samples(1, np.dtype(np.float32)),
}
"""By the mode that is decoded to."""

_CONVERSIONS = {
    "1": "L",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
_CONVERSIONS |= {"I;16B": "I;16", "I;16L": "I;16", "I;16N": "I;16", "PA": "RGBA"}


def _identify(file: BinaryIO) -> ImageFile.ImageFile:
    """What ``Image.open`` does, without its objections to large images: our limit names the size."""
    Image.init()
    head = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        if accept is None or accept(head) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # how Pillow's formats say that it is not theirs
    raise UnidentifiedImageError("Pillow does not know this format")


def _read_header(path: str, file: BinaryIO) -> _Header:
    try:
        image = _identify(file)
        target = _CONVERSIONS.get(image.mode, image.mode)
        if image.mode == "P" or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
            target = "RGBA" if "transparency" in image.info else "RGB"
        frames = int(getattr(image, "n_frames", 1)) if image.format in ("TIFF", "MPO") else 1
        tiled = image.format == "TIFF" and _TILE_WIDTH in getattr(image, "tag_v2", {})
        header = _Header(image.format or "", image.mode, target, image.size, _orientation(image), frames, tiled)
    except UnidentifiedImageError as error:
        raise UnsupportedFormatError(f"{path}: {error}") from error
    except Exception as error:  # a plugin's parser on damaged bytes
        raise CorruptImageError(path, f"its header cannot be read: {type(error).__name__}: {error}") from error
    if header.target not in _SAMPLES:
        raise UnsupportedFormatError(f"{path}: Pillow's mode {header.mode!r} is not supported")
    if min(header.size) < 1:
        raise CorruptImageError(path, f"impossible size: {header.size[0]} x {header.size[1]}")
    if header.format == "TIFF" and (header.frames > 1 or header.tiled):
        raise UnsupportedFormatError(f"{path}: of TIFFs only single images in strips are left to Pillow")
    return header


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation that stands before the pixels, else 1. Pillow itself turns TIFFs."""
    block = image.info.get("exif")
    if image.format == "TIFF" or not block:
        return 1
    try:
        exif = Image.Exif()
        exif.load(block)
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (damaged EXIF says nothing)
        return 1
    return value if value in _TURNS else 1


def _halved_levels(width: int, height: int) -> Iterator[Level]:
    w, h, index = width, height, 0
    while True:
        yield Level(index, w, h, width / w, height / h, w, h)
        if max(w, h) <= SMALLEST_SIDE:
            return
        w, h, index = -(-w // 2), -(-h // 2), index + 1


def is_raster(path: str) -> bool:
    """Whether Pillow knows the file's format."""
    try:
        with open(path, "rb") as file:
            _read_header(path, file)
    except (CorruptImageError, UnsupportedFormatError, OSError) as error:
        # A damaged image is an image still, and its damage is told when it is opened.
        return isinstance(error, CorruptImageError)
    return True
