"""Decoded tiles on a disk, for images whose tiles take longer to decode or to fetch than to read back.

Off unless ``PYRTRAV_DISK_CACHE_BYTES`` is above 0; then in ``tiles`` below the cache directory. A file a tile, whose
name stands for the state of its image, the tile and the rule that made its pixels. Any number of processes may share
the folder: a tile appears under its name when it is whole, what is torn or altered is told by its checksum and dropped,
and what a killed process left half-written is removed. The tiles that were not used for longest make room. Nothing here
raises: a cache that cannot be used is one warning, and reading goes on without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Hashable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pyrtrav.pyramid import limits
from pyrtrav.pyramid.tiles import Tile

VERSION = 1
"""Of what is kept: counted up when the same file and rule give other pixels."""

_HEADER = struct.Struct("<4sIIIIB")
"""Mark, checksum, height, width, channels, and 1 where there is a mask, else 0."""

_MARK = b"PYRT"
_PRUNED_TO = 0.9
# The folder is measured again after so much of the bound was written; by as much may each further process overshoot.
_MEASURE_AFTER = 1 / 16
_LEFT_SECONDS = 3600.0

_log = logging.getLogger("pyrtrav")


def disk_cache() -> DiskCache | None:
    """Return the cache that the environment asks for; None where it asks for none."""
    most = limits.disk_cache_bytes()
    return _shared(limits.cache_dir() / "tiles", most) if most else None


def name_of(*what: Hashable) -> str:
    """Return the name under which a tile is kept."""
    return hashlib.sha256(repr((VERSION, *what)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


class DiskCache:
    """Tiles by name in one folder, bounded in bytes. Safe from any number of threads and processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._nbytes: int | None = None
        """What lay there when it was last measured, and what this process has written since."""
        self._measured = 0
        self._off = False

    def __contains__(self, name: str) -> bool:
        return self._file(name).exists()

    def get(self, name: str) -> Tile | None:
        """Return the tile and mark it as used now where we may, or None."""
        path = self._file(name)
        try:
            with path.open("rb") as file:
                data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
                file.readinto(data)  # type: ignore[arg-type]
        except OSError:
            return None
        with suppress(OSError):  # another's: he alone may mark it
            os.utime(path)
        tile = _unpacked(name, data)
        if tile is None:
            _log.warning("%s: damaged, dropped from the cache of tiles", path)
            _remove(path)
        return tile

    def put(self, name: str, tile: Tile) -> None:
        """Keep a tile; one above a sixteenth of the bound is not kept."""
        size = tile.nbytes + _HEADER.size
        if self._off or size > self.max_bytes * _MEASURE_AFTER:
            return
        path = self._file(name)
        beside = path.with_name(f".{name}.{os.getpid()}-{time.monotonic_ns()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("xb") as file:
                for part in _packed(name, tile):
                    file.write(part)
            os.replace(beside, path)
            self._make_room(size)
        except OSError as error:
            _remove(beside)
            self._off = True
            _log.warning("%s: tiles are not kept on the disk any more: %s", self.folder, error.strerror or error)

    def _file(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _make_room(self, written: int) -> None:
        if self._nbytes is not None:
            self._nbytes += written
            if self._nbytes <= self.max_bytes and self._nbytes - self._measured < self.max_bytes * _MEASURE_AFTER:
                return
        try:
            with FileLock(self.folder / "lock", timeout=0):
                self._nbytes = self._measured = self._pruned()
        except Timeout:
            pass  # another process makes room; it is measured again at the next tile

    def _pruned(self) -> int:
        """Remove what is beyond the bound; return how many bytes are left."""
        used = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # gone since
            used.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in used)
        left = time.time() - _LEFT_SECONDS
        wanted = self.max_bytes * _PRUNED_TO if total > self.max_bytes else self.max_bytes
        for used_at, size, path in sorted(used):
            is_left_over = path.name.startswith(".") and used_at < left
            if total > wanted or is_left_over:
                _remove(path)
                total -= size
        return total


@cache
def _shared(folder: Path, max_bytes: int) -> DiskCache:
    return DiskCache(folder, max_bytes)


def _packed(name: str, tile: Tile) -> list[bytes | memoryview]:
    pixels = np.ascontiguousarray(tile.pixels)
    body = [pixels.data] if tile.valid is None else [pixels.data, np.ascontiguousarray(tile.valid).data]
    shape = *pixels.shape, int(tile.valid is not None)
    checksum = zlib.crc32(repr((name, shape)).encode())
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return [_HEADER.pack(_MARK, checksum, *shape), *body]


def _unpacked(name: str, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Tile | None:
    """The tile that a file holds; None where it is not whole."""
    if len(data) < _HEADER.size:
        return None
    mark, checksum, height, width, channels, has_mask = _HEADER.unpack(data[: _HEADER.size].tobytes())
    body, count = data[_HEADER.size :], height * width * channels
    if mark != _MARK or len(body) != count + height * width * has_mask:
        return None
    if checksum != zlib.crc32(body.data, zlib.crc32(repr((name, (height, width, channels, has_mask))).encode())):
        return None
    valid = body[count:].view(np.bool_).reshape(height, width) if has_mask else None
    return Tile(body[:count].reshape(height, width, channels), valid)


def _remove(path: Path) -> None:
    with suppress(OSError):  # another's, or a folder that has become read-only
        path.unlink(missing_ok=True)
