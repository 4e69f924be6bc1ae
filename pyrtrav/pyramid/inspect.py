"""Images without their pixels: what they are, whether they are the same, what belongs to them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from typing import Any

from pyrtrav.errors import PyramidError
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.flat import is_flat
from pyrtrav.pyramid.omezarr import is_zarr_file
from pyrtrav.pyramid.open import candidates, read_head
from pyrtrav.pyramid.remote_open import claims_url, url_fingerprint
from pyrtrav.pyramid.source import is_url
from pyrtrav.pyramid.tiff_levels import is_tiff

_END_BYTES = 64 << 10
_DICOM_MAGIC = slice(128, 132)


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a hexadecimal name for an image's content that costs two small reads a file.

    SHA-256 over size, modification time and the first and last 64 KiB; over all files, sorted, where an image
    is a folder or several files. Of a URL, over what its server says of it.

    Raises:
        PyramidError: a file is missing or cannot be read.
    """
    path = os.fspath(path)
    if is_url(path):
        return url_fingerprint(path)
    members = [path, *companions(path)]
    files = sorted({file for member in members for file in _files_below(member)})
    total = hashlib.sha256()
    try:
        for file in files:
            if len(files) > 1:
                # The place of a file in its image counts; the place of the image on the disk does not.
                total.update(os.path.relpath(file, os.path.dirname(os.path.abspath(path))).encode() + b"\0")
            total.update(_file_digest(file))
    except OSError as error:
        raise PyramidError(f"{path}: {error.strerror or error}") from error
    return total.hexdigest()


def _file_digest(path: str) -> bytes:
    # A named pipe would be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        ends = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, status.st_size - _END_BYTES))
        ends.update(file.read(_END_BYTES))
    return hashlib.sha256(struct.pack("<qq", status.st_size, status.st_mtime_ns) + ends.digest()).digest()


def _files_below(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [os.path.abspath(path)]
    return [os.path.abspath(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names]


def claims(path: str | os.PathLike[str]) -> bool:
    """Whether a backend would try to open the file or folder; looks at its beginning, never at its pixels."""
    path = os.fspath(path)
    if is_url(path):
        return claims_url(path)
    try:
        head = read_head(path)
        if is_tiff(head):
            return True  # by which backend is found out when it is opened
        names = candidates(path, head)
    except PyramidError:
        return False
    if names == ("raster",):
        return is_flat(path)
    return names != ("omezarr",) or os.path.isdir(path) or is_zarr_file(path)


def companions(path: str | os.PathLike[str]) -> set[str]:
    """Return the other files and folders that are part of this image, spelled beside ``path`` as it is given.

    The data folder of a ``.mrxs``, and the other files of a DICOM series; of any other image there are none.
    """
    path = os.fspath(path)
    if path.lower().endswith(".mrxs"):
        folder = os.path.splitext(path)[0]
        return {folder} if os.path.isdir(folder) else set()
    series = dicom_series(path)
    if series is None:
        return set()
    folder = os.path.dirname(path)
    others = (os.path.join(folder, name) for name in os.listdir(folder or "."))
    return {other for other in others if other != path and dicom_series(other) == series}


def dicom_series(path: str) -> str | None:
    """Return the SeriesInstanceUID of a DICOM file, None for any other file.

    Only the tag is looked for, in the first 64 KiB: all that is needed to tell which files are one slide.
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_DICOM_MAGIC.stop)
            if head[_DICOM_MAGIC] != b"DICM":
                return None
            head += file.read(_END_BYTES - len(head))
    except OSError:
        return None
    # Tag (0020,000E), explicit VR `UI` with a 16-bit length, or implicit VR with a 32-bit one.
    at = head.find(b"\x20\x00\x0e\x00UI")
    if at >= 0:
        length = struct.unpack_from("<H", head, at + 6)[0]
    else:
        at = head.find(b"\x20\x00\x0e\x00")
        if at < 0 or at + 8 > len(head):
            return None
        length = struct.unpack_from("<I", head, at + 4)[0]
    uid = head[at + 8 : at + 8 + min(length, 64)].rstrip(b"\0 ")
    return uid.decode("ascii", "replace")


def describe(pyramid: Pyramid) -> dict[str, Any]:
    """Return what is known of an open image as plain data."""
    rule, bounds = pyramid.pixel_rule, pyramid.bounds
    return {
        "path": pyramid.path,
        "backend": pyramid.backend,
        "width": pyramid.width,
        "height": pyramid.height,
        "mpp": pyramid.mpp,
        "said_mpp": pyramid.said_mpp,
        "bounds": {"x": bounds.x, "y": bounds.y, "width": bounds.width, "height": bounds.height},
        "background": list(pyramid.background),
        "pixels": {
            "channels": rule.channels,
            "chosen": list(rule.chosen) if rule.chosen is not None else None,
            "stored_colors": rule.samples.colors,
            "stored_type": str(rule.samples.dtype),
            "alpha": rule.samples.alpha,
            "window": list(rule.window) if rule.window is not None else None,
        },
        "tiles_total": pyramid.tiles_total,
        "levels": [
            {
                "index": level.index,
                "width": level.width,
                "height": level.height,
                "downsample": max(level.downsample_x, level.downsample_y),
                "tile_width": level.tile_width,
                "tile_height": level.tile_height,
                "tiles": level.columns * level.rows,
            }
            for level in pyramid.levels
        ],
        "properties": dict(pyramid.properties),
    }
