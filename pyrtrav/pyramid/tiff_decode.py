"""From the stored bytes of one TIFF tile or strip to samples.

8-bit JPEG goes through simplejpeg, strictly: a truncated tile is an error, not gray. The rest goes through
tifffile to imagecodecs. What a tile's own header says about its size is checked before anything is decoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
JPEG = 7
JPEG_2000 = (33004, 33005, 34712)
# JPEG 2000 of Aperio in YCbCr, which imagecodecs leaves unconverted; OpenSlide reads it.
APERIO_JPEG_2000_YCBCR = 33003
WEBP = 50001
# None, CCITT, LZW, deflate, packbits, LZMA, Zstandard: what they decode to is bounded by the size of the
# tile.
BOUNDED = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
# WebP images have 16,383 pixels a side at most; the size of JPEG and JPEG 2000 is read from their headers.
SUPPORTED = (*BOUNDED, JPEG, *JPEG_2000, WEBP)
# These give RGB whatever the photometric tag says.
GIVES_RGB = (JPEG, *JPEG_2000, WEBP)


class Frame(NamedTuple):
    """What a JPEG stream says about itself."""

    width: int
    height: int
    components: int
    subsampled: bool


def decode_segment(page: Any, data: bytes, index: int, size: tuple[int, int]) -> NDArray[Any]:
    """Return one tile or strip of a page as samples (h, w, n).

    Args:
        page: tifffile's.
        data: its stored bytes.
        index: its number, which decides how much of it lies in the image.
        size: (width, height) of a tile; a stream that is larger is refused before it is decoded.

    Raises:
        ValueError: damaged, or not what the directory declares; or whatever else a codec raises.
    """
    samples = int(page.samplesperpixel) if page.planarconfig == 1 else 1
    tables = page.jpegtables
    if page.compression == JPEG:
        frame = jpeg_frame(data)
        _check_size((frame.width, frame.height), size)
        if frame.components != samples:
            raise ValueError(f"the JPEG stream has {frame.components} components, but {samples} are declared")
        if page.bitspersample == 8 and samples in (1, 3):
            return decode_jpeg(data, tables, int(page.photometric), frame)
    elif page.compression in JPEG_2000:
        _check_size(jpeg_2000_size(data), size)
    decoded: NDArray[Any] = page.decode(data, index, jpegtables=tables)[0][0]
    return decoded.reshape(*decoded.shape[:2], -1)


def _check_size(found: tuple[int, int], declared: tuple[int, int]) -> None:
    if found[0] > declared[0] or found[1] > declared[1]:
        raise ValueError(f"the tile is {found[0]} x {found[1]} pixels, but {declared[0]} x {declared[1]} are declared")


def decode_jpeg(data: bytes, tables: bytes | None, photometric: int, frame: Frame) -> NDArray[np.uint8]:
    """Decode a JPEG tile of 1 or 3 components to (h, w, components); a damaged or truncated one is a
    ValueError.

    The TIFF tag decides between RGB and YCbCr, as in OpenSlide, by an Adobe marker that is put in front. A
    JFIF marker overrules it in libjpeg, and subsampled chroma does here: both mean YCbCr whatever a wrong tag
    says.
    """
    marker = b""
    if frame.components == 3:
        transform = 0 if photometric == RGB and not frame.subsampled else 1
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    shared = b"" if not tables else tables[2:-2]
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        b"\xff\xd8" + marker + shared + data[2:], "GRAY" if frame.components == 1 else "RGB"
    )
    return pixels


def jpeg_frame(data: bytes) -> Frame:
    """Read the frame header of a JPEG stream."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("the tile is no JPEG stream")
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components = data[at + 9] if at + 9 < len(data) else 0
            factors = {data[i] for i in range(at + 11, min(at + 11 + 3 * components, len(data)), 3)}
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            return Frame(width, height, components, len(factors) > 1)
        at += 2 + length
    raise ValueError("the JPEG stream has no frame header")


def jpeg_2000_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) of a JPEG 2000 stream, bare or in its file format."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(data):
        raise ValueError("the tile is no JPEG 2000 stream")
    right, bottom, left, top = (int.from_bytes(data[i : i + 4], "big") for i in range(at + 8, at + 24, 4))
    return right - left, bottom - top


def natural_colors(samples: NDArray[Any], page: Any, colormap: NDArray[np.uint8] | None) -> NDArray[Any]:
    """Undo what only TIFF does: palettes, inks, white as zero."""
    photometric = int(page.photometric)
    if photometric == PALETTE and colormap is not None:
        return colormap[samples[..., 0].astype(np.intp)]
    if photometric == SEPARATED:
        inks = 255 - samples[..., :4].astype(np.uint16)
        return np.asarray((inks[..., :3] * inks[..., 3:4] + 127) // 255).astype(np.uint8)
    if photometric == MINISWHITE:
        whitest = samples.dtype.type((1 << int(page.bitspersample)) - 1) if samples.dtype.kind == "u" else -1
        gray = ~samples[..., :1] if samples.dtype == np.bool_ else whitest - samples[..., :1]
        return np.concatenate([gray, samples[..., 1:]], axis=-1)
    return samples
