"""Tiled pyramids of large flat images, made when first needed and kept in a cache directory.

The folder is ``PYRTRAV_CACHE_DIR``, else ``pyrtrav`` in ``XDG_CACHE_HOME``, else ``~/.cache/pyrtrav``. A name in it
stands for one state of one file and one version of the converter. Whoever converts holds a lock, under which what
a killed process left is removed; a pyramid appears under its name when it is whole. Beyond
``PYRTRAV_CACHE_DIR_BYTES`` those that were not used for longest are removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from pyrtrav.errors import (
    ConfigError,
    CorruptImageError,
    ImageChangedError,
    PyramidError,
    UnsupportedFormatError,
    without_frames,
)
from pyrtrav.files import make_folder, written_whole
from pyrtrav.pyramid.limits import cache_dir, cache_dir_bytes
from pyrtrav.pyramid.pixels import Samples
from pyrtrav.pyramid.source import identity
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiles import Level, RawTile
from pyrtrav.pyramid.vips import TILE, tiled_sizes, write_pyramid_apart

VERSION = 1
"""Of what is written: counted up when older pyramids must not be read any more."""

_log = logging.getLogger("pyrtrav")


def tiled_levels(width: int, height: int) -> list[Level]:
    """Return the levels that a converted image has."""
    sizes = enumerate(tiled_sizes(width, height))
    return [Level(i, w, h, width / w, height / h, TILE, TILE) for i, (w, h) in sizes]


class _Kept(TiffPyramid):
    """A converted pyramid. Its file may be removed while it is open; it is closed with the image that it is of."""

    def park(self) -> bool:
        return True


class Conversion:
    """The tiled pyramid of one flat image: found, or else made, when its first tile is read."""

    def __init__(self, path: str, levels: Sequence[Level], samples: Samples) -> None:
        self._path, self._identity = path, identity(path)
        self._sizes = [(level.width, level.height) for level in levels]
        self._samples = samples
        self._opening = Lock()
        self._pyramid: _Kept | None = None
        self._failure: PyramidError | None = None
        self.file = cache_dir() / f"{_key(self._identity)}.tif"

    def __str__(self) -> str:
        return f"{self.file}" if self.file.exists() else f"{self.file} (made when first needed)"

    def tile(self, level: int, column: int, row: int) -> RawTile | None:
        """Return a tile of the converted pyramid.

        Raises:
            CorruptImageError: the source or the converted pyramid is damaged; names the tile.
            PyramidError: it cannot be converted.
        """
        try:
            return self._opened()._raw_tile((level, column, row))
        except ImageChangedError:
            raise
        except CorruptImageError as error:
            reason = error.reason
            if error.path != self._path:
                reason = f"its converted pyramid is damaged, delete {self.file} ({reason})"
            raise CorruptImageError(self._path, reason, level=level, column=column, row=row) from error

    def close(self) -> None:
        """Give back the file handle; the converted pyramid stays."""
        pyramid, self._pyramid = self._pyramid, None
        if pyramid is not None:
            pyramid.close()

    def _opened(self) -> _Kept:
        # One thread converts; the others wait for it. What failed once is not tried again for every tile.
        with self._opening:
            if self._failure is not None:
                raise without_frames(self._failure)
            if self._pyramid is None:
                try:
                    self._pyramid = self._open()
                except PyramidError as error:
                    self._failure = error
                    raise
            return self._pyramid

    def _open(self) -> _Kept:
        for attempt in range(2):
            _find_or_make(self._path, self._identity, self.file)
            try:
                pyramid = _Kept(self.file, window=(0, 1))  # samples are read, not pixels
            except PyramidError:
                if attempt:
                    raise
                self.file.unlink(missing_ok=True)  # damaged, or removed in this moment
                continue
            sizes = [(level.width, level.height) for level in pyramid.levels]
            kind = pyramid.samples.colors, pyramid.samples.dtype, pyramid.samples.alpha
            if sizes == self._sizes and kind == (self._samples.colors, self._samples.dtype, self._samples.alpha):
                return pyramid
            pyramid.close()
            self.file.unlink(missing_ok=True)
        raise PyramidError(f"{self._path}: its converted pyramid {self.file} is not of its size and colours")


def _key(file: tuple[Hashable, ...]) -> str:
    return hashlib.sha256(repr((file, VERSION)).encode()).hexdigest()[:32]


def _find_or_make(source: str, file: tuple[Hashable, ...], target: Path) -> None:
    if _is_there(target):
        return
    try:
        folder = make_folder(target.parent)
        with _lock(target):
            if _is_there(target):
                return
            _sweep(folder, target)
            _log.warning("%s is large: converting it once to a tiled pyramid, kept as %s", source, target)
            with written_whole(target) as beside:
                _write(source, os.fspath(beside), folder)
                if identity(source) != file:
                    raise ImageChangedError(source)
            _prune(folder, target)
    except (ConfigError, OSError, NotImplementedError) as error:
        if isinstance(error, PyramidError):
            raise
        raise PyramidError(
            f"{source}: it is converted to a tiled pyramid in {target.parent}, which cannot be written to ({error}); "
            "set PYRTRAV_CACHE_DIR to a folder with space"
        ) from error


def _is_there(target: Path) -> bool:
    """Whether a pyramid is there; it is used now."""
    if not target.exists():
        return False
    with suppress(OSError):  # a folder that others own, or removed in this moment
        os.utime(target)
    return target.exists()


def _write(source: str, beside: str, folder: Path) -> None:
    try:
        write_pyramid_apart(source, beside)
    except (CorruptImageError, UnsupportedFormatError):
        raise
    except PyramidError as error:
        raise PyramidError(f"{error} (in {folder}; set PYRTRAV_CACHE_DIR to a folder with more space)") from error


def _lock(target: Path, timeout: float = -1) -> FileLock:
    """One of 16 locks, so that few files are left behind."""
    return FileLock(target.parent / f"lock-{target.name[0]}", timeout=timeout)


def _sweep(folder: Path, target: Path) -> None:
    """Remove what killed processes left half-written; ``target``'s lock is held."""
    for part in folder.glob(".*.tif.*"):
        owner = folder / part.name[1:]
        if owner.name[0] == target.name[0]:
            part.unlink(missing_ok=True)
            continue
        try:
            with _lock(owner, timeout=0):
                part.unlink(missing_ok=True)
        except Timeout:
            pass  # being written


def _prune(folder: Path, kept: Path) -> None:
    """Remove the least recently used pyramids beyond the limit; who has one open keeps reading it."""
    used = []
    for path in folder.glob("[0-9a-f]*.tif"):
        with suppress(FileNotFoundError):  # another process prunes too
            used.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    used.sort()
    total = sum(size for _, size, _ in used)
    for _, size, path in used:
        if total > cache_dir_bytes() and path != kept:
            path.unlink(missing_ok=True)
            total -= size
