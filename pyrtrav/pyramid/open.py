"""Open an image: decide by its content which backend reads it."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError, PyramidError, UnsupportedFormatError, nearest_name
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.isolated import isolated_class
from pyrtrav.pyramid.omezarr import OmeZarrPyramid, is_zarr_folder
from pyrtrav.pyramid.pixels import Channels, Window
from pyrtrav.pyramid.raster import RasterPyramid
from pyrtrav.pyramid.remote_open import open_url
from pyrtrav.pyramid.slide import SlidePyramid, vendor
from pyrtrav.pyramid.source import is_url
from pyrtrav.pyramid.striped import StripedTiffPyramid, lacks_levels
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiff_levels import is_tiff
from pyrtrav.pyramid.time_limit import TimeLimit

BACKENDS: dict[str, type[Pyramid]] = {
    "tiff": TiffPyramid,
    "slide": SlidePyramid,
    "omezarr": OmeZarrPyramid,
    "raster": RasterPyramid,
}
"""Every reader of files, by the name that ``backend=`` takes."""

ISOLATE = ("auto", "always", "never")
"""Which readers run in a process of their own: those that have been seen to crash on damaged files, all, none."""

_RISKY = {"slide"}

# OpenSlide reads these too, but slower, without SubIFDs, and gives up for good at the first damaged tile.
_OURS = {"aperio", "generic-tiff", None}


def open_pyramid(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    mpp: float | None = None,
    channels: Channels | None = None,
    window: Window | None = None,
    shrink: bool = False,
    isolate: str = "never",
    limit: TimeLimit | None = None,
) -> Pyramid:
    """Return the image as a pyramid; close it, or use it as a context manager.

    Args:
        path: a regular file, the folder of an OME-Zarr image, or the URL of a TIFF or OME-Zarr image.
        backend: one of ``BACKENDS``; by default the content decides.
        mpp: micrometres per level-0 pixel, where the file says nothing or something wrong.
        channels: 1 or 3 as the model wants, or the numbers of the stored samples; default 3.
        window: (low, high) samples that become 0 and 255, above 8 bits.
        shrink: let a JPEG decoder halve tiles, once to three times, where a patch is that much coarser than the
            level. For reading a whole image at one scale: it saves up to a fifth of the time there, but pixels
            differ by 1 to 4 of 255 in the mean, and a traversal, which comes back to the same tiles at the next
            depth, decodes them twice (docs/reading.md).
        isolate: which local files are decoded in a process of its own, so that a decoder that crashes or hangs costs
            this image and not the program: ``auto`` (those that OpenSlide reads), ``always`` or ``never``.
        limit: how long opening and reading may take.

    Raises:
        UnsupportedFormatError: no backend can open it; says what each one said.
        CorruptImageError: its format is known, but it is damaged.
        TimeLimitError: opening took longer than the limit.
        PyramidError: missing, empty, unreadable, or no regular file.
        ConfigError: an unknown backend, or channels that no model has.
    """
    path = os.fspath(path)
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}{nearest_name(backend, BACKENDS)}")
    check_isolate(isolate)
    check_mpp(mpp)
    options: dict[str, Any] = {"mpp": mpp, "channels": channels, "window": window, "shrink": shrink, "limit": limit}
    if is_url(path):
        return open_url(path, backend, options)
    head = read_head(path)
    names = candidates(path, head) if backend is None else (backend,)
    said = []
    for name in names:
        try:
            apart = isolate == "always" or (isolate == "auto" and name in _RISKY)
            return open_as(name, path, options, apart=apart)
        except UnsupportedFormatError as error:
            said.append(f"{name}: {str(error).removeprefix(f'{path}: ')}")
    if _is_text(head):
        raise UnsupportedFormatError(f"{path}: its content is text, not an image, whatever its name says")
    raise UnsupportedFormatError(f"{path}: no reader can open it\n  " + "\n  ".join(said))


def open_as(name: str, path: str, options: dict[str, Any], *, apart: bool = False) -> Pyramid:
    """Open a file with the backend of that name; ``apart``: it is decoded in a process of its own."""
    kind = BACKENDS[name]
    pyramid = (isolated_class(kind) if apart else kind)(path, **options)
    if isinstance(pyramid, TiffPyramid) and lacks_levels(pyramid):
        pyramid.close()
        return (isolated_class(StripedTiffPyramid) if apart else StripedTiffPyramid)(path, **options)
    return pyramid


def check_isolate(isolate: str) -> None:
    """Raise ConfigError for an unknown way to isolate readers."""
    if isolate not in ISOLATE:
        raise ConfigError(f"unknown way to isolate readers {isolate!r}{nearest_name(isolate, ISOLATE)}")


def check_mpp(mpp: float | None) -> None:
    """Raise ConfigError for a given resolution that is none."""
    if mpp is not None and not 0 < mpp < math.inf:
        raise ConfigError(f"mpp is a number of micrometres above 0, got {mpp}")


def read_head(path: str) -> bytes:
    """Return a file's first bytes (none for a folder), after the checks that keep a reader from hanging.

    Raises:
        PyramidError: missing, empty, unreadable, or no regular file.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return b""
        if not stat.S_ISREG(mode):
            # Opening a named pipe would wait forever.
            raise PyramidError(f"{path}: is a pipe, socket or device; an image is a regular file or a zarr folder")
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise PyramidError(f"{path}: no such file") from error
    except PermissionError as error:
        raise PyramidError(f"{path}: permission denied; make it readable for this user") from error
    except (OSError, ValueError) as error:
        raise PyramidError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not head:
        raise PyramidError(f"{path}: the file is empty (0 bytes); copy or download it again")
    return head


def candidates(path: str, head: bytes) -> tuple[str, ...]:
    """Return the backends to ask, in order, for a file that begins with ``head``; a folder has none.

    Raises:
        UnsupportedFormatError: a folder that is no zarr image, or a MIRAX slide without its data.
    """
    if not head:
        if is_zarr_folder(path):
            return ("omezarr",)
        raise UnsupportedFormatError(
            f"{path}: is a folder without zarr metadata; name an image file in it, or an OME-Zarr folder"
        )
    if head[:4] == b"PK\x03\x04":
        return ("omezarr",)
    known = vendor(path)
    if is_tiff(head) and known in _OURS:
        return ("tiff", "slide") if known == "aperio" else ("tiff", "raster")
    if known is not None:
        return ("slide",)
    if path.lower().endswith(".mrxs"):
        # The .mrxs itself is a JPEG preview: it must not be taken for the slide.
        folder = Path(path).with_suffix("")
        what = "is damaged" if folder.is_dir() else "is missing"
        raise UnsupportedFormatError(f"{path}: the folder {folder.name!r} with the slide's data {what}; put it beside")
    return ("raster",)


def _is_text(head: bytes) -> bool:
    return bool(head) and not any(byte < 9 or 13 < byte < 32 or byte == 127 for byte in head)
