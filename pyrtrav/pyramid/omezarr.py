"""OME-Zarr (OME-NGFF) 0.1 to 0.5: zarr format 2 and 3, sharded too, in a folder or a zip file.

The first point in time and the first focal plane are read; the axis ``c`` gives the samples. A tile is what
one chunk covers in y and x. A chunk that is not stored is declared empty where its array has a fill value, else
an error; where only some channels' are missing, those hold the fill value. Of many channels only those that
the model sees are read. A level's scale is the ratio of the shapes, whatever its metadata say.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from threading import local
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.ngff import axes_of, checked_name, image_group, mpp_of, omero_window
from pyrtrav.pyramid.pixels import Samples, wanted_samples
from pyrtrav.pyramid.remote_store import RemoteStore
from pyrtrav.pyramid.source import is_url
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES, MAX_TILE_PIXELS, Key, Level, RawTile
from pyrtrav.pyramid.zarr_array import ZarrArray
from pyrtrav.pyramid.zarr_fallback import FallbackArray
from pyrtrav.pyramid.zarr_store import FolderStore, Store, ZipStore

ChunkedArray = ZarrArray | FallbackArray

_MAX_SCRATCH_BYTES = 8 << 20

METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
"""Any of them makes a folder a zarr hierarchy."""


def is_zarr_folder(path: str) -> bool:
    """Whether a folder is a zarr hierarchy."""
    return any(os.path.isfile(os.path.join(path, name)) for name in METADATA)


def is_zarr_file(path: str) -> bool:
    """Whether a zip file holds a zarr hierarchy."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.rpartition("/")[2] in METADATA for name in file.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


# A buffer for a decoded chunk, one a thread for all images.
_SCRATCH = local()


class OmeZarrPyramid(Pyramid):
    """A multiscale image in a zarr hierarchy."""

    backend: ClassVar[str] = "omezarr"
    _store: Store | None = None

    def _open(self) -> None:
        try:
            if not isinstance(self._store, RemoteStore):
                self._store = FolderStore(self.path) if os.path.isdir(self.path) else ZipStore(self.path)
            self._open_multiscale(self._store)
        except zipfile.BadZipFile as error:
            raise UnsupportedFormatError(
                f"{self.path}: neither a zarr folder nor a readable zip file: {error}"
            ) from error
        except PyramidError:
            raise
        except Exception as error:  # whatever damaged metadata lead to
            if isinstance(self._store, RemoteStore) and isinstance(error, OSError):
                raise PyramidError(f"{self.path}: {error}") from error
            raise CorruptImageError(
                self.path, f"its OME-Zarr metadata cannot be read: {type(error).__name__}: {str(error)[:200]}"
            ) from error

    def _close(self) -> None:
        store, self._store = self._store, None
        self._arrays: list[ChunkedArray] = []
        if store is not None:
            store.close()

    def _file_identity(self) -> tuple[Hashable, ...]:
        """Of a folder also what lies directly in it: chunks are not looked at, metadata and levels are."""
        if is_url(self.path):
            # Opened here: the metadata at its root say which image it is.
            self.prefetches = True
            self._store = remote = RemoteStore(self.path, self.cost)
            return remote.identity
        identity = super()._file_identity()
        if os.path.isdir(self.path):
            try:
                with os.scandir(self.path) as entries:
                    stats = [entry.stat() for entry in sorted(entries, key=lambda entry: entry.name)]
            except OSError as error:
                raise PyramidError(f"{self.path}: {error.strerror or error}") from error
            identity += tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))
        return identity

    def _open_multiscale(self, store: Store) -> None:
        group = image_group(self.path, store)
        multiscale = group.attributes["multiscales"][0]
        levels = _stored_levels(self.path, store, group.name, multiscale["datasets"])
        arrays = [array for _, array in levels.stored]
        dimensions = len(arrays[0].shape)
        axes = axes_of(multiscale.get("axes"), dimensions)
        kinds = {(len(array.shape), array.dtype) for array in arrays}
        if len(kinds) > 1 or len(axes) != dimensions:
            raise CorruptImageError(self.path, "its levels differ in axes or type")
        self._axes = [name for name, _ in axes]
        if self._axes.count("y") != 1 or self._axes.count("x") != 1:
            raise UnsupportedFormatError(f"{self.path}: its axes {self._axes} are no y and x")
        y, x = self._axes.index("y"), self._axes.index("x")
        self._channel_axis = self._axes.index("c") if "c" in self._axes else None
        if self._channel_axis is not None and len({array.shape[self._channel_axis] for array in arrays}) > 1:
            raise CorruptImageError(self.path, "its levels differ in their number of channels")
        _check_missing(self.path, levels, y, x)
        self._arrays = _of_one_image(arrays, y, x)
        self.levels = tuple(_level(self.path, i, array, self._arrays[0], y, x) for i, array in enumerate(self._arrays))
        self.bounds = Region(0, 0, self.levels[0].width, self.levels[0].height)
        finest = levels.stored[arrays.index(self._arrays[0])][0]
        self.mpp = self._believed_mpp(mpp_of(multiscale, finest, x, axes[x][1]))
        self._set_samples(group.attributes.get("omero"))
        left_out = [f"{name} (missing)" for name in levels.missing]
        left_out += [f"{array.name} (no further scale of the image)" for array in arrays if array not in self._arrays]
        self.properties = {
            "format": "ome-zarr",
            "version": str(group.attributes.get("version") or multiscale.get("version") or ""),
            "axes": "".join(self._axes),
            "name": str(multiscale.get("name", "")),
            "chunks_read_by": "zarr-python" if any(isinstance(a, FallbackArray) for a in self._arrays) else "pyrtrav",
            **({"image": group.name} if group.name else {}),
            **({"other_images": group.others} if group.others else {}),
            **({"levels_left_out": ", ".join(left_out)} if left_out else {}),
        }

    def _set_samples(self, omero: Any) -> None:
        first = self._arrays[0]
        colors = 1 if self._channel_axis is None else first.shape[self._channel_axis]
        self._wanted = wanted_samples(colors, self._options["channels"])
        window = omero_window(omero, self._wanted) if first.dtype.itemsize > 1 else None
        self.samples = Samples(colors, first.dtype, "none", window)
        tile = self.levels[0].tile_width * self.levels[0].tile_height * colors * first.dtype.itemsize
        largest = max(tile, *(array.chunk_bytes for array in self._arrays))
        if largest > MAX_TILE_BYTES:
            raise UnsupportedFormatError(f"{self.path}: its chunks of {largest >> 20} MiB cannot be read lazily")
        # In this order a decoded chunk is the tile; in any other it is copied, and its memory used again.
        order = "".join(axis for axis in self._axes if axis in "yxc" and (axis != "c" or colors > 1))
        self._is_interleaved = order in ("yx", "yxc") and colors <= 3

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        array, at = self._arrays[level], self.levels[level]
        per_chunk = self._channels_per_chunk(array)
        tile_bytes = at.tile_width * at.tile_height * self.samples.colors * array.dtype.itemsize
        whole_pixels = per_chunk == self.samples.colors
        is_tile = self._is_interleaved and whole_pixels and array.chunk_bytes == tile_bytes
        scratch = None if is_tile else self._scratch_for(array)
        samples, stored, missing = None, 0, []
        for group, place in self._places(array, column, row):
            chunk = array.read_chunk(place, scratch)
            if chunk is None:
                if array.fill_value is None:
                    reason = "its chunk is not stored, and the array declares no fill value"
                    raise CorruptImageError(self.path, reason, level=level, column=column, row=row)
                missing.append(group)
                continue
            stored += chunk.stored_bytes
            pixels = self._pixels(chunk.values)
            if is_tile:
                return RawTile(pixels, stored)
            if samples is None:
                samples = self._empty_samples(at, array.dtype)
            for channel in (c for c in self._wanted if c // per_chunk == group):
                samples[:, :, channel] = pixels[:, :, channel - group * per_chunk]
        if samples is None:
            return None
        for channel in (c for c in self._wanted if c // per_chunk in missing):
            samples[:, :, channel] = _number(array.fill_value)
        return RawTile(samples, stored)

    def _prefetch(self, keys: Sequence[Key]) -> None:
        if isinstance(self._store, RemoteStore):
            arrays = [(self._arrays[level], column, row) for level, column, row in keys]
            self._store.prefetch(
                partial(array.locate, place)
                for array, column, row in arrays
                if isinstance(array, ZarrArray)
                for _, place in self._places(array, column, row)
            )

    def _channels_per_chunk(self, array: ChunkedArray) -> int:
        return 1 if self._channel_axis is None else array.chunks[self._channel_axis]

    def _places(self, array: ChunkedArray, column: int, row: int) -> Iterator[tuple[int, list[int]]]:
        """The chunks that a tile is made of: which of the channels' chunks, and its place along every axis."""
        per_chunk = self._channels_per_chunk(array)
        for group in sorted({channel // per_chunk for channel in self._wanted}):
            place = {"y": row, "x": column, "c": group}
            yield group, [place.get(axis, 0) for axis in self._axes]

    def _scratch_for(self, array: ChunkedArray) -> NDArray[np.uint8] | None:
        """This thread's buffer for a decoded chunk; none for a large one, which it would keep."""
        if array.scratch_bytes > _MAX_SCRATCH_BYTES:
            return None
        found: NDArray[np.uint8] | None = getattr(_SCRATCH, "buffer", None)
        if found is None or len(found) < array.scratch_bytes:
            _SCRATCH.buffer = found = np.empty(array.scratch_bytes, np.uint8)
        return found

    def _empty_samples(self, level: Level, dtype: np.dtype[Any]) -> NDArray[Any]:
        shape = level.tile_height, level.tile_width, self.samples.colors
        return (np.empty if set(self._wanted) == set(range(self.samples.colors)) else np.zeros)(shape, dtype)

    def _pixels(self, values: NDArray[Any]) -> NDArray[Any]:
        """A chunk as (y, x, c): the first of every other axis."""
        plane = values[tuple(slice(None) if axis in "yxc" else 0 for axis in self._axes)]
        kept = [axis for axis in self._axes if axis in "yxc"]
        if self._channel_axis is None:
            plane, kept = plane[..., None], [*kept, "c"]
        return plane.transpose([kept.index(axis) for axis in "yxc"])


class _Levels(NamedTuple):
    """The datasets of an image, as they are listed."""

    stored: list[tuple[Mapping[str, Any], ChunkedArray]]
    missing: list[str]
    first_is_stored: bool


def _stored_levels(path: str, store: Store, group: str, datasets: Sequence[Mapping[str, Any]]) -> _Levels:
    levels = _Levels([], [], True)
    names = [checked_name(path, f"{group}/{said['path']}" if group else said["path"]) for said in datasets]
    if isinstance(store, RemoteStore):
        store.prepare(names)
    for said, name in zip(datasets, names, strict=True):
        try:
            levels.stored.append((said, _array(path, store, name)))
        except FileNotFoundError:
            levels.missing.append(name)
    if not levels.stored:
        raise CorruptImageError(path, f"none of its levels is there (arrays {', '.join(levels.missing) or 'unnamed'})")
    return levels._replace(first_is_stored=levels.stored[0][0] is datasets[0])


def _array(path: str, store: Store, name: str) -> ChunkedArray:
    try:
        return ZarrArray(path, store, name)
    except UnsupportedFormatError:
        return FallbackArray(path, store, name)


def _check_missing(path: str, levels: _Levels, y: int, x: int) -> None:
    """A coarse level may be missing, for the finer ones show the same; the finest, which is listed first, may not."""
    sizes = [array.shape[y] * array.shape[x] for _, array in levels.stored]
    if levels.missing and not (levels.first_is_stored and sizes == sorted(sizes, reverse=True)):
        raise CorruptImageError(path, f"its array {levels.missing[0]!r} is missing, which may be the finest level")


def _of_one_image(arrays: Sequence[ChunkedArray], y: int, x: int) -> list[ChunkedArray]:
    """The levels that show the same image, largest first, one of each size."""
    ordered = sorted(arrays, key=lambda array: array.shape[y] * array.shape[x], reverse=True)
    height, width = ordered[0].shape[y], ordered[0].shape[x]
    kept: dict[tuple[int, int], ChunkedArray] = {}
    for array in ordered:
        size = array.shape[y], array.shape[x]
        # An aspect that is off by more than a pixel and 2 % is another image.
        expected = height * size[1] / width
        if abs(size[0] - expected) <= max(1.0, 0.02 * expected):
            kept.setdefault(size, array)
    return list(kept.values())


def _level(path: str, index: int, array: ChunkedArray, first: ChunkedArray, y: int, x: int) -> Level:
    height, width = array.shape[y], array.shape[x]
    tile_height, tile_width = array.chunks[y], array.chunks[x]
    if tile_width * tile_height > MAX_TILE_PIXELS:
        raise UnsupportedFormatError(f"{path}: its chunks of {tile_width} x {tile_height} cannot be read lazily")
    ratios = first.shape[x] / width, first.shape[y] / height
    return Level(index, width, height, *ratios, tile_width, tile_height)


def _number(fill_value: object) -> float | int:
    return fill_value if isinstance(fill_value, int | float) else 0
