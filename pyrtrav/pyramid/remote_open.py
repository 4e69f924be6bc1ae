"""Images behind URLs: what they are, by their first bytes or the metadata below them."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

from pyrtrav.cost import Cost
from pyrtrav.errors import PyramidError, UnsupportedFormatError
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.omezarr import OmeZarrPyramid
from pyrtrav.pyramid.remote import HEAD_BYTES, RemoteFile
from pyrtrav.pyramid.remote_client import NoRangesError
from pyrtrav.pyramid.remote_store import RemoteStore
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiff_levels import is_tiff

_READERS: dict[str, type[Pyramid]] = {"tiff": TiffPyramid, "omezarr": OmeZarrPyramid}


def open_url(url: str, backend: str | None, options: dict[str, Any]) -> Pyramid:
    """Open a TIFF file or an OME-Zarr hierarchy.

    Raises:
        UnsupportedFormatError: it is something else, which must be downloaded first.
        PyramidError: it cannot be read; says why.
    """
    names = _order(url) if backend is None else [backend]
    said: list[PyramidError] = []
    for name in names:
        if name not in _READERS:
            raise UnsupportedFormatError(f"{url}: the backend {name!r} reads local files only; download it first")
        try:
            return _READERS[name](url, **options)
        except PyramidError as error:
            if not _is_something_else(error):
                raise
            said.append(error)
    if isinstance(said[0], UnsupportedFormatError) and "download" not in str(said[0]):
        raise UnsupportedFormatError(f"{said[0]}; download it first") from said[0]
    raise said[0]


def claims_url(url: str) -> bool:
    """Whether a TIFF or a zarr hierarchy is there."""
    try:
        return _identified(url)[1]
    except PyramidError:
        return False


def url_fingerprint(url: str) -> str:
    """Return SHA-256 over what the server tells of the file or hierarchy; where it tells nothing, of its two ends.

    Raises:
        PyramidError: it cannot be read.
    """
    return hashlib.sha256(repr(_identified(url)[0]).encode()).hexdigest()


def _identified(url: str) -> tuple[tuple[Hashable, ...], bool]:
    """What tells the image from another, and whether it is one that is read."""
    said: list[PyramidError] = []
    for name in _order(url):
        try:
            if name == "omezarr":
                return RemoteStore(url, Cost()).identity, True
            file = RemoteFile(url, Cost())
            ends: tuple[bytes, ...] = ()
            if not (file.version.etag or file.version.modified):
                ends = file.read(0, HEAD_BYTES), file.read(max(0, file.size - HEAD_BYTES), HEAD_BYTES)
            return (*file.identity, *ends), is_tiff(file.read(0, 4))
        except PyramidError as error:
            if not _is_something_else(error):
                raise
            said.append(error)
        except OSError as error:
            raise PyramidError(f"{url}: {error}") from error
    raise said[0]


def _order(url: str) -> list[str]:
    """The readers to ask, first the one that the name speaks for."""
    name = url.partition("?")[0].rstrip("/").lower()
    return ["omezarr", "tiff"] if name.endswith(".zarr") or url.endswith("/") else ["tiff", "omezarr"]


def _is_something_else(error: PyramidError) -> bool:
    # A folder of a hierarchy is no file: servers say that it is missing, refused, or list it as a page.
    return isinstance(error, UnsupportedFormatError) or isinstance(
        error.__cause__, FileNotFoundError | PermissionError | NoRangesError
    )
