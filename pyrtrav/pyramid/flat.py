"""What a flat image says about itself: read before a pixel is decoded or memory for it is taken.

PNG, JPEG, WebP, BMP, GIF and others, recognised by Pillow. The first frame counts.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.limits import convert_bytes, max_pixels
from pyrtrav.pyramid.pixels import Samples

FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX", "SGI", "QOI",
)  # fmt: skip
"""Formats that are asked for. Pillow's others hand the file to external programs, or hold no photograph."""

SAMPLES = {
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

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""

_ORIENTATION, _TILE_WIDTH = 274, 322

# Deflate makes at most 1,032 bytes of one. A JPEG spends at least a bit on a block of 64 pixels; with chroma
# stored coarsely, 10 blocks may stand for 1,024 pixels.
_DEFLATE_RATIO = 1032
_JPEG_PIXELS_A_BYTE = 1024


@dataclass(frozen=True)
class Header:
    """What the file says before a pixel is decoded."""

    format: str
    mode: str
    target: str
    """The mode that the pixels are converted to: one that numpy and PixelRule know."""
    size: tuple[int, int]
    """Width and height as stored."""
    orientation: int
    frames: int
    tiled: bool
    """Of a TIFF."""
    decode_bytes: int
    """Memory that a decoder needs at once for the whole image; 0 where it goes row by row."""
    by_vips: bool
    """Whether libvips gives the same pixels as Pillow, so that it can decode in rows."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height with the orientation applied: what a viewer shows."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    @property
    def samples(self) -> Samples:
        return SAMPLES[self.target]

    @property
    def scalable(self) -> bool:
        """Whether it can be decoded at 1/8 in little memory, to the pixels of an eighth of the upright image."""
        whole_blocks = self.orientation == 1 or not any(side % 8 for side in self.size)
        return self.format in ("JPEG", "MPO") and self.by_vips and not self.decode_bytes and whole_blocks


def identify(file: BinaryIO) -> ImageFile.ImageFile:
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


def read_header(path: str) -> Header:
    """Return what the file says.

    Raises:
        UnsupportedFormatError: Pillow does not know it, or its colours are not supported.
        CorruptImageError: its header is damaged.
    """
    try:
        with open(path, "rb") as file:
            header = _header(identify(file), file)
    except UnidentifiedImageError as error:
        raise UnsupportedFormatError(f"{path}: {error}") from error
    except Exception as error:  # a plugin's parser on damaged bytes
        raise CorruptImageError(path, f"its header cannot be read: {type(error).__name__}: {error}") from error
    if header.target not in SAMPLES:
        raise UnsupportedFormatError(f"{path}: Pillow's mode {header.mode!r} is not supported")
    if min(header.size) < 1:
        raise CorruptImageError(path, f"impossible size: {header.size[0]} x {header.size[1]}")
    if header.format == "TIFF" and (header.frames > 1 or header.tiled):
        raise UnsupportedFormatError(f"{path}: of TIFFs only single images in strips are left to Pillow")
    return header


def check_size(path: str, header: Header) -> None:
    """Raise where more pixels are declared than are allowed, or than the file's bytes can hold."""
    width, height = header.size
    if width * height > max_pixels():
        raise UnsupportedFormatError(
            f"{path}: it declares {width:,} x {height:,} pixels (the limit is {max_pixels():,}); if you trust the "
            "file, set PYRTRAV_MAX_PIXELS to more"
        )
    stored = os.path.getsize(path)
    needed = 0
    if header.format == "PNG":
        bits = {"1": 1, "P": 1, "L": 1, "LA": 16, "RGB": 24, "RGBA": 32}.get(header.mode, 16)
        needed = height * (width * bits // 8) // _DEFLATE_RATIO
    elif header.format in ("JPEG", "MPO"):
        needed = width * height // _JPEG_PIXELS_A_BYTE
    if stored < needed:
        raise CorruptImageError(
            path,
            f"its {stored:,} bytes cannot hold the {width:,} x {height:,} pixels that it declares; it is truncated "
            "or forged",
        )


def check_memory(path: str, header: Header) -> None:
    """Raise UnsupportedFormatError where converting takes more memory at once than is allowed."""
    if header.decode_bytes > convert_bytes():
        width, height = header.size
        what = "progressive JPEG" if header.format == "JPEG" and header.by_vips else f"{header.format} of its kind"
        raise UnsupportedFormatError(
            f"{path}: a {what} is decoded whole, which takes {header.decode_bytes / 1e9:.1f} GB of memory for "
            f"{width:,} x {height:,} pixels (the limit is {convert_bytes() / 1e9:.1f} GB); save it as baseline "
            "JPEG, PNG without interlacing or tiled TIFF, or set PYRTRAV_CONVERT_BYTES to more"
        )


def _header(image: ImageFile.ImageFile, file: BinaryIO) -> Header:
    target = _CONVERSIONS.get(image.mode, image.mode)
    if image.mode == "P" or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
        target = "RGBA" if "transparency" in image.info else "RGB"
    format = image.format or ""
    frames = int(getattr(image, "n_frames", 1)) if format in ("TIFF", "MPO") else 1
    tiled = format == "TIFF" and _TILE_WIDTH in getattr(image, "tag_v2", {})
    by_vips = format == "PNG" or (format in ("JPEG", "MPO") and image.mode in ("L", "RGB"))
    size, turn = image.size, _orientation(image)
    return Header(format, image.mode, target, size, turn, frames, tiled, _decode_bytes(image, file, by_vips), by_vips)


def _decode_bytes(image: ImageFile.ImageFile, file: BinaryIO, by_vips: bool) -> int:
    pixels = image.size[0] * image.size[1]
    if not by_vips:
        return 8 * pixels  # Pillow's four bytes a pixel, and numpy's copy of them
    if image.format == "PNG":
        return 8 * pixels if image.info.get("interlace") else 0
    if not _has_many_scans(file):
        return 0
    # libjpeg keeps every coefficient, in two bytes.
    layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]
    most = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
    return 2 * pixels * sum(layer[1] * layer[2] for layer in layers) // most


def _has_many_scans(file: BinaryIO) -> bool:
    """Whether a JPEG is progressive, or holds its components one after another."""
    file.seek(2)
    components = 0
    while True:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            return True  # not understood: expect the worst
        if marker[1] == 0xFF:
            file.seek(-1, os.SEEK_CUR)  # a fill byte
            continue
        length = int.from_bytes(file.read(2), "big")
        if marker[1] in (0xC0, 0xC1):
            components = (file.read(length - 2) + bytes(6))[5]
        elif marker[1] == 0xDA:
            return file.read(1)[:1] != bytes([components])
        else:
            file.seek(max(0, length - 2), os.SEEK_CUR)


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
    return value if value in TURNS else 1


def check_chunks(path: str) -> None:
    """Compare the checksums of a PNG, which Pillow does not do for the chunks that hold the pixels.

    Raises:
        CorruptImageError: one does not match, or the file ends before its last chunk.
    """
    with open(path, "rb") as file:
        file.seek(8)
        kind = b""
        while kind != b"IEND":
            head = file.read(8)
            left, kind = int.from_bytes(head[:4], "big"), head[4:]
            checksum = zlib.crc32(kind)
            while left and (block := file.read(min(left, 1 << 20))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            said = file.read(4)
            if left or len(said) < 4:
                raise CorruptImageError(path, "the file ends before its last chunk", level=0, column=0, row=0)
            if int.from_bytes(said, "big") != checksum:
                name = kind.decode("ascii", "replace")
                reason = f"its chunk {name} is damaged: the checksum does not match"
                raise CorruptImageError(path, reason, level=0, column=0, row=0)


def decode_whole(path: str, header: Header) -> NDArray[Any]:
    """Return the upright image as samples (h, w, n), decoded by Pillow.

    Raises:
        CorruptImageError: its pixels cannot be decoded.
    """
    if header.format == "PNG":
        check_chunks(path)
    try:
        with open(path, "rb") as file:
            image: Image.Image = identify(file)
            image.load()
            if image.mode != header.target:
                image = image.convert(header.target)
            if header.orientation in TURNS:
                image = image.transpose(TURNS[header.orientation])
            samples = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to
        raise CorruptImageError(path, f"{type(error).__name__}: {error}", level=0, column=0, row=0) from error
    if samples.shape[1::-1] != header.upright:
        raise CorruptImageError(path, "its size is not what its header says", level=0, column=0, row=0)
    return samples.reshape(*samples.shape[:2], -1)


def is_flat(path: str) -> bool:
    """Whether Pillow knows the file's format."""
    try:
        read_header(path)
    except (CorruptImageError, UnsupportedFormatError, OSError) as error:
        # A damaged image is an image still, and its damage is told when it is opened.
        return isinstance(error, CorruptImageError)
    return True
