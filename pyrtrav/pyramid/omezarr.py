"""OME-Zarr (OME-NGFF) 0.1 to 0.5: zarr format 2 and 3, sharded too, in a folder or a zip file.

The first point in time and the first focal plane are read; the axis ``c`` gives the samples. A tile is what
one chunk covers in y and x. A chunk that is not stored is declared empty; where only some channels' are
missing, those hold the fill value. Of many channels only those that the model sees are read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import Samples, Window, wanted_samples
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES, MAX_TILE_PIXELS, Level, RawTile, plausible_mpp
from pyrtrav.pyramid.zarr_array import FolderStore, Store, ZarrArray, ZipStore, read_json

METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
"""Any of them makes a folder a zarr hierarchy."""

MICROMETRES = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "meter": 1e6,
    "inch": 25_400.0,
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "mm": 1e3,
}
"""By the units that the specification names, and the abbreviations that writers use."""


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


class OmeZarrPyramid(Pyramid):
    """A multiscale image in a zarr hierarchy."""

    backend: ClassVar[str] = "omezarr"

    def _open(self) -> None:
        self._store: Store | None = None
        try:
            if os.path.isdir(self.path):
                self._store = FolderStore(self.path)
            else:
                self._store = ZipStore(self.path)
            self._open_multiscale(self._store)
        except zipfile.BadZipFile as error:
            raise UnsupportedFormatError(
                f"{self.path}: neither a zarr folder nor a readable zip file: {error}"
            ) from error
        except PyramidError:
            raise
        except Exception as error:  # whatever damaged metadata lead to
            raise CorruptImageError(
                self.path, f"its OME-Zarr metadata cannot be read: {type(error).__name__}: {str(error)[:200]}"
            ) from error

    def _close(self) -> None:
        store, self._store = getattr(self, "_store", None), None
        if store is not None:
            store.close()

    def _file_identity(self) -> tuple[int, ...]:
        """Of a folder also what lies directly in it: chunks are not looked at, metadata and levels are."""
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
        root, attributes = _image_group(self.path, store)
        multiscale = attributes["multiscales"][0]
        names = [_checked_name(self.path, dataset["path"]) for dataset in multiscale["datasets"]]
        arrays = [ZarrArray(self.path, store, f"{root}{name}") for name in names]
        if not arrays:
            raise CorruptImageError(self.path, "its multiscale image has no datasets")
        axes = _axes(multiscale.get("axes"), len(arrays[0].shape))
        if len({(len(array.shape), array.dtype) for array in arrays}) > 1 or len(axes) != len(arrays[0].shape):
            raise CorruptImageError(self.path, "its levels differ in axes or type")
        self._axes = [name for name, _ in axes]
        if self._axes.count("y") != 1 or self._axes.count("x") != 1:
            raise UnsupportedFormatError(f"{self.path}: its axes {self._axes} are no y and x")
        y, x = self._axes.index("y"), self._axes.index("x")
        arrays.sort(key=lambda array: array.shape[y] * array.shape[x], reverse=True)
        self._arrays = list(_distinct_sizes(arrays, y, x))
        self.levels = tuple(_level(self.path, i, array, self._arrays[0], y, x) for i, array in enumerate(self._arrays))
        self.bounds = Region(0, 0, self.levels[0].width, self.levels[0].height)
        finest = multiscale["datasets"][[f"{root}{name}" for name in names].index(self._arrays[0].name)]
        self.mpp = _mpp(multiscale, finest, x, axes[x][1])
        self._set_samples(attributes.get("omero"))
        self.properties = {
            "format": "ome-zarr",
            "version": str(attributes.get("version") or multiscale.get("version") or ""),
            "axes": "".join(self._axes),
            "name": str(multiscale.get("name", "")),
        }

    def _set_samples(self, omero: Any) -> None:
        first = self._arrays[0]
        self._channel_axis = self._axes.index("c") if "c" in self._axes else None
        colors = 1 if self._channel_axis is None else first.shape[self._channel_axis]
        self._wanted = wanted_samples(colors, self._options["channels"])
        window = _omero_window(omero, self._wanted) if first.dtype.itemsize > 1 else None
        self.samples = Samples(colors, first.dtype, "none", window)
        tile = self.levels[0].tile_width * self.levels[0].tile_height * colors * first.dtype.itemsize
        if tile > MAX_TILE_BYTES:
            raise UnsupportedFormatError(f"{self.path}: its chunks of {tile >> 20} MiB cannot be read lazily")

    def _decode_tile(self, level: int, column: int, row: int) -> RawTile | None:
        array, at = self._arrays[level], self.levels[level]
        place = {"y": row, "x": column}
        if self._channel_axis is None:
            chunk = array.read_chunk([place.get(axis, 0) for axis in self._axes])
            return None if chunk is None else RawTile(self._plane(chunk.values, 0)[:, :, None], chunk.stored_bytes)
        size = array.chunks[self._channel_axis]
        stored, found = 0, False
        samples = np.zeros((at.tile_height, at.tile_width, self.samples.colors), array.dtype)
        for group in sorted({channel // size for channel in self._wanted}):
            chunk = array.read_chunk([{**place, "c": group}.get(axis, 0) for axis in self._axes])
            for channel in (c for c in self._wanted if c // size == group):
                if chunk is None:
                    samples[:, :, channel] = _number(array.fill_value)
                else:
                    samples[:, :, channel] = self._plane(chunk.values, channel - group * size)
            if chunk is not None:
                found = True
                stored += chunk.stored_bytes
        return RawTile(samples, stored) if found else None

    def _plane(self, values: np.ndarray[Any, Any], channel: int) -> np.ndarray[Any, Any]:
        """The (y, x) part of a chunk: the first of every other axis."""
        index = tuple(slice(None) if axis in "yx" else channel if axis == "c" else 0 for axis in self._axes)
        plane = values[index]
        return plane if self._axes.index("y") < self._axes.index("x") else plane.T


def _image_group(path: str, store: Store) -> tuple[str, Mapping[str, Any]]:
    """The group with the multiscale image: the root, or the first image of a bioformats2raw collection."""
    for root in ("", "0/"):
        attributes = _attributes(store, root)
        if isinstance(attributes.get("multiscales"), list) and attributes["multiscales"]:
            return root, attributes
        if "plate" in attributes or "well" in attributes:
            raise UnsupportedFormatError(f"{path}: is a plate of many images; name one of them, such as {path}/A/1/0")
    raise UnsupportedFormatError(f"{path}: is zarr, but no OME-Zarr image: it has no `multiscales` metadata")


def _attributes(store: Store, root: str) -> Mapping[str, Any]:
    group = read_json(store, f"{root}zarr.json")
    if group is not None:
        attributes = group.get("attributes", {})
        found = attributes.get("ome", attributes)
    else:
        found = read_json(store, f"{root}.zattrs") or {}
    return found if isinstance(found, dict) else {}


def _checked_name(path: str, name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise CorruptImageError(path, f"its level {name!r} lies outside of it")
    return name.strip("/")


def _axes(said: Any, count: int) -> list[tuple[str, str | None]]:
    """(name, unit) of every axis; before version 0.3 they are the last of t, c, z, y, x."""
    if not said:
        return [(name, None) for name in "tczyx"[5 - count :]]
    return [(axis, None) if isinstance(axis, str) else (axis["name"], axis.get("unit")) for axis in said]


def _distinct_sizes(arrays: Sequence[ZarrArray], y: int, x: int) -> Iterator[ZarrArray]:
    """The levels that show the same image, one of each size."""
    seen: set[tuple[int, int]] = set()
    height, width = arrays[0].shape[y], arrays[0].shape[x]
    for array in arrays:
        size = array.shape[y], array.shape[x]
        # An aspect that is off by more than a pixel and 2 % is another image.
        expected = height * size[1] / width
        if size not in seen and abs(size[0] - expected) <= max(1.0, 0.02 * expected):
            seen.add(size)
            yield array


def _level(path: str, index: int, array: ZarrArray, first: ZarrArray, y: int, x: int) -> Level:
    height, width = array.shape[y], array.shape[x]
    tile_height, tile_width = array.chunks[y], array.chunks[x]
    if tile_width * tile_height > MAX_TILE_PIXELS:
        raise UnsupportedFormatError(f"{path}: its chunks of {tile_width} x {tile_height} cannot be read lazily")
    ratios = first.shape[x] / width, first.shape[y] / height
    return Level(index, width, height, *ratios, tile_width, tile_height)


def _mpp(multiscale: Mapping[str, Any], dataset: Mapping[str, Any], x: int, unit: str | None) -> float | None:
    """Micrometres per pixel of the finest level; None without a unit, for then 1 measures nothing."""
    if unit not in MICROMETRES:
        return None
    scale = MICROMETRES[unit]
    for said in (dataset, multiscale):
        for transform in said.get("coordinateTransformations") or ():
            if transform.get("type") == "scale":
                scale *= float(transform["scale"][x])
    return plausible_mpp(scale)


def _omero_window(omero: Any, wanted: Sequence[int]) -> Window | None:
    """The range that holds the display ranges of the channels."""
    try:
        windows = [omero["channels"][channel]["window"] for channel in wanted]
        low = min(float(window.get("start", window.get("min"))) for window in windows)
        high = max(float(window.get("end", window.get("max"))) for window in windows)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return None
    return (low, high) if high > low else None


def _number(fill_value: object) -> float | int:
    return fill_value if isinstance(fill_value, int | float) else 0
