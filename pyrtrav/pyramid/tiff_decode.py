"""From the stored bytes of one TIFF tile or strip to samples.

8-bit JPEG goes through simplejpeg, strictly: a truncated tile is an error, not gray. The rest goes through
tifffile to imagecodecs. What a tile's own header says about its size is checked before anything is decoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pyrtrav.pyramid import buffers

MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
JPEG = 7
JPEG_2000 = (33004, 33005, 34712)
# JPEG 2000 of Aperio in YCbCr, which imagecodecs leaves unconverted; OpenSlide reads it.
APERIO_JPEG_2000_YCBCR = 33003
WEBP = 50001
# None, CCITT, LZW, deflate, packbits, LZMA, Zstandard: what they decode to is bounded by the size of the
# tile.
BOUNDED = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
JPEG_XL = (50002, 52546)
LERC = 34887
# WebP images have 16,383 pixels a side at most; the size of JPEG and JPEG 2000 is read from their headers; decoders
# of JPEG XL and LERC compare theirs with an array that they are given.
SUPPORTED = (*BOUNDED, JPEG, *JPEG_2000, WEBP, *JPEG_XL, LERC)
# These give RGB whatever the photometric tag says.
GIVES_RGB = (JPEG, *JPEG_2000, WEBP, *JPEG_XL)
# These take milliseconds a tile.
SLOW = (*JPEG_2000, *JPEG_XL)

LERC_PARAMETERS = 50674


class Frame(NamedTuple):
    """What a JPEG stream says about itself."""

    width: int
    height: int
    components: int
    subsampled: bool


class JpegTiles:
    """How the 8-bit JPEG tiles of a directory are decoded, of 1 or 3 components.

    The TIFF tag decides between RGB and YCbCr, as in OpenSlide, by an Adobe marker that is put in front. A
    JFIF marker overrules it in libjpeg, and subsampled chroma does here: both mean YCbCr whatever a wrong tag
    says.
    """

    def __init__(self, tables: bytes | None, photometric: int, components: int) -> None:
        shared = b"" if not tables else tables[2:-2]
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" if components == 3 else b""
        as_rgb, as_ycbcr = (b"\0", b"\1") if components == 3 else (b"", b"")
        self._head = b"\xff\xd8" + marker + as_ycbcr + shared
        self._plain_head = self._head if photometric != RGB else b"\xff\xd8" + marker + as_rgb + shared
        self.is_plain = photometric in (MINISBLACK, RGB, YCBCR)
        """Whether samples mean what they say: no palette, no ink."""
        self._components, self._colorspace = components, "RGB" if components == 3 else "GRAY"
        # The last header that was found good: as a rule all tiles of a file begin alike.
        self._seen: tuple[bytes, Frame] = b"", Frame(0, 0, 0, False)

    def decode(self, data: bytes, size: tuple[int, int], shrink: int = 1) -> NDArray[np.uint8]:
        """Return a tile's samples (h, w, components); a damaged or truncated one is a ValueError.

        Args:
            size: (width, height) of a tile; a stream that is larger is refused before it is decoded.
            shrink: 1, 2, 4 or 8: how much smaller the inverse cosine transform makes it.
        """
        header, frame = self._seen
        if not header or not data.startswith(header):
            frame, end = read_jpeg_header(data)
            _check_size((frame.width, frame.height), size)
            _check_components(frame, self._components)
            self._seen = data[:end], frame
        stream = (self._head if frame.subsampled else self._plain_head) + data[2:]
        height, width = -(-frame.height // shrink), -(-frame.width // shrink)
        buffer = buffers.empty((height, width, self._components))
        simplejpeg.decode_jpeg(stream, self._colorspace, min_height=height, min_width=width, buffer=buffer)
        return buffer


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
    if page.compression == JPEG:
        frame, _ = read_jpeg_header(data)
        _check_size((frame.width, frame.height), size)
        _check_components(frame, samples_together(page))
    elif page.compression in JPEG_2000:
        _check_size(jpeg_2000_size(data), size)
    elif page.compression in JPEG_XL or page.compression == LERC:
        return _decode_into(page, data, index, size)
    decoded: NDArray[Any] = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
    return decoded.reshape(*decoded.shape[:2], -1)


def _decode_into(page: Any, data: bytes, index: int, size: tuple[int, int]) -> NDArray[Any]:
    """Decode JPEG XL or LERC into an array of the declared size: a stream of another size is an error."""
    width, height = size
    if not page.is_tiled:
        height = min(height, int(page.imagelength) - index * height)  # the last strip is shorter
    count = samples_together(page)
    out = np.empty((height, width, count) if count > 1 else (height, width), page.dtype)
    if page.compression == LERC:
        parameters = page.tags.valueof(LERC_PARAMETERS) or (0, 0)
        packed_by = {1: imagecodecs.zlib_decode, 2: imagecodecs.zstd_decode}.get(int(parameters[1]))
        if packed_by is not None:
            data = bytes(packed_by(data, out=2 * out.nbytes + (1 << 16)))
        imagecodecs.lerc_decode(data, out=out)
    else:
        imagecodecs.jpegxl_decode(data, out=out)
    return out.reshape(height, width, count)


def samples_together(page: Any) -> int:
    """How many samples of a pixel a tile holds."""
    return int(page.samplesperpixel) if page.planarconfig == 1 else 1


def jpeg_tiles(page: Any) -> JpegTiles | None:
    """How a directory's tiles are decoded if they are JPEG of 8 bits, else None."""
    components = samples_together(page)
    if page.compression != JPEG or page.bitspersample != 8 or components not in (1, 3):
        return None
    return JpegTiles(page.jpegtables, int(page.photometric), components)


def _check_components(frame: Frame, declared: int) -> None:
    if frame.components != declared:
        raise ValueError(f"the JPEG stream has {frame.components} components, but {declared} are declared")


def _check_size(found: tuple[int, int], declared: tuple[int, int]) -> None:
    if found[0] > declared[0] or found[1] > declared[1]:
        raise ValueError(f"the tile is {found[0]} x {found[1]} pixels, but {declared[0]} x {declared[1]} are declared")


def read_jpeg_header(data: bytes) -> tuple[Frame, int]:
    """Read a JPEG stream up to its frame header, and return that and where it ends."""
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
            return Frame(width, height, components, len(factors) > 1), at + 2 + length
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
