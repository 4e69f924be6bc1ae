"""Region hints: boxes around the evidence in some training images, from a CSV or from QuPath's GeoJSON.

They teach a policy where to look (`methods.guidance`) and are read in training only. A CSV has the columns
``path,left,top,right,bottom``, in level-0 pixels, one box a line, paths relative to its folder; other columns are
ignored. GeoJSON is one file an image, named after it (``slide.geojson`` or ``slide.svs.geojson``): such a file, or a
folder of them.

Simplified: a polygon counts as its bounding box, each part of a multipolygon as a box of its own. A large region of
odd shape is better given as several.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError, DatasetError, nearest_name
from pyrtrav.geometry import Region
from pyrtrav.methods import Method
from pyrtrav.pyramid import Pyramid
from pyrtrav.tables import csv_lines
from pyrtrav.training.data import Dataset

COLUMNS = ("path", "left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True)
class Hint:
    """One box."""

    region: Region
    """Level-0 pixels of the file; from the bounds' corner where ``cropped``."""
    source: str
    """``table:line``, or the GeoJSON file and the number of the feature."""
    cropped: bool = False
    """QuPath shows a slide without its empty margin, and counts from there."""


class Hints:
    """The boxes of the images that have some, by absolute path."""

    def __init__(self, boxes: Mapping[str, Sequence[Hint]] | None = None) -> None:
        self.boxes = {path: tuple(hints) for path, hints in (boxes or {}).items()}
        self._warnings: list[str] = []
        self._warned: set[str] = set()

    def __len__(self) -> int:
        """Images that have boxes."""
        return len(self.boxes)

    @property
    def identity(self) -> list[tuple[str, list[tuple[float, float, float, float]]]]:
        """What a resumed run must agree with."""
        return [(path, [hint.region.as_tuple() for hint in self.boxes[path]]) for path in sorted(self.boxes)]

    def of(self, path: str, image: Pyramid) -> tuple[Region, ...]:
        """Return an image's boxes, cut to its bounds; one that lies outside is left out, with a warning."""
        inside = []
        for hint in self.boxes.get(path, ()):
            region = hint.region
            if hint.cropped:
                region = Region(region.x + image.bounds.x, region.y + image.bounds.y, region.width, region.height)
            if region.intersects(image.bounds):
                inside.append(region.intersection(image.bounds))
            elif hint.source not in self._warned:
                self._warned.add(hint.source)
                self._warnings.append(
                    f"{hint.source}: lies outside of {path} ({image.bounds.width:g} x {image.bounds.height:g} px) and "
                    "is left out; boxes are in pixels of the full resolution"
                )
        return tuple(inside)

    def new_warnings(self) -> list[str]:
        """Return the warnings since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings


def check_method(method: Method, hints: Hints, *, max_depth: int | None = None, lesson: bool = False) -> None:
    """Raise ConfigError where there are hints and nothing to teach (see `check_policy`), or a lesson and no hints."""
    if len(hints):
        check_policy(method, max_depth)
    elif lesson:
        raise ConfigError("lesson=true learns from region hints, and there are none; name some with --regions")


def check_policy(method: Method, max_depth: int | None = None) -> None:
    """Raise ConfigError where hints have nothing to teach: no policy, or one that is never asked where to look."""
    if "hints" not in method.supports:
        raise ConfigError(f"method {method.name!r} has no policy that region hints could teach; leave them out")
    if max_depth == 0:
        raise ConfigError(
            "with max_depth=0 there is nowhere to look but the glance; leave region hints out or go deeper"
        )


def load_hints(source: str | Path, dataset: Dataset) -> Hints:
    """Return the hints of a CSV, a GeoJSON file or a folder of GeoJSON files.

    Raises:
        DatasetError: a box that is none, an image that the data do not list (names file and line), or no box of any
            training image.
    """
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise DatasetError(f"{path}: no such file or folder")
    if os.path.isdir(path):
        # Other JSON lies there too, such as QuPath's own.
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(".geojson") and name[0] != ".")
        files = [os.path.join(path, name) for name in names]
        if not files:
            raise DatasetError(f"{path}: holds no .geojson file; name each after its image")
        found = _by_name(files, dataset)
    elif path.lower().endswith((".geojson", ".json")):
        found = _by_name([path], dataset)
    elif path.lower().endswith(".csv"):
        found = list(_from_csv(path, {example.path for example in dataset.examples}))
    else:
        raise DatasetError(f"{path}: region hints are a .csv, a .geojson or a folder of .geojson files")
    boxes: dict[str, list[Hint]] = defaultdict(list)
    for image, hint in found:
        boxes[image].append(hint)
    _check_taught(path, boxes, dataset)
    return Hints(boxes)


def _check_taught(path: str, boxes: Mapping[str, Sequence[Hint]], dataset: Dataset) -> None:
    """Raise DatasetError where no training image has a box: whoever gives hints expects them to teach."""
    if not boxes:
        raise DatasetError(f"{path}: holds no region; give one at least, or leave region hints out")
    splits = {example.path: example.split for example in dataset.examples}
    found = sorted({splits[image] for image in boxes})
    if "train" not in found:
        raise DatasetError(
            f"{path}: its regions are all in images of {' and '.join(found)}, and only training images' are used; "
            "give some of those, or leave region hints out"
        )


def _box(left: float, top: float, right: float, bottom: float, where: str) -> Region:
    """Return a box; DatasetError where it has no area or its numbers are none."""
    if not all(map(math.isfinite, (left, top, right - left, bottom - top))):
        raise DatasetError(f"{where}: a box of left {left}, top {top}, right {right}, bottom {bottom} is nowhere")
    if not (right > left and bottom > top):
        raise DatasetError(
            f"{where}: the box is empty or inverted: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}; "
            "right must be above left, and bottom above top"
        )
    return Region(left, top, right - left, bottom - top)


# Tables.


def _from_csv(path: str, known: set[str]) -> Iterator[tuple[str, Hint]]:
    lines = csv_lines(path)
    _, columns = next(lines, (1, []))
    for name in COLUMNS:
        if columns.count(name) != 1:
            needed = ",".join(COLUMNS)
            wrong = "no column" if name not in columns else "more than one column"
            raise DatasetError(f"{path}:1: {wrong} {name!r}; its first line must name the columns {needed}")
    for line, values in lines:
        where = f"{path}:{line}"
        if len(values) != len(columns):
            raise DatasetError(f"{where}: {len(values)} values where the header names {len(columns)} columns")
        fields = dict(zip(columns, values, strict=True))
        image = os.path.normpath(os.path.join(os.path.dirname(path), fields["path"]))
        if image not in known:
            raise DatasetError(
                f"{where}: {fields['path']!r} is no image of the data; paths are relative to the table's folder"
            )
        left, top, right, bottom = (_number(fields[name], name, where) for name in COLUMNS[1:])
        yield image, Hint(_box(left, top, right, bottom, where), where)


def _number(text: str, name: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{where}: {name} is {text!r}, which is no number") from None


# GeoJSON.


def _by_name(files: Iterable[str], dataset: Dataset) -> list[tuple[str, Hint]]:
    """The boxes of files that are named after their images."""
    named: dict[str, set[str]] = defaultdict(set)
    for example in dataset.examples:
        name = os.path.basename(example.path)
        for short in {name, name.partition(".")[0], os.path.splitext(name)[0]}:
            named[short].add(example.path)
    found = []
    for file in files:
        name = os.path.splitext(os.path.basename(file))[0]
        images = named.get(name, set())
        if not images:
            raise DatasetError(
                f"{file}: no image of the data is named {name!r}{nearest_name(name, list(named)[:1000])}"
            )
        if len(images) > 1:
            both = " and ".join(sorted(images)[:2])
            raise DatasetError(f"{file}: may be of {both}; name it after one of them, with its suffix")
        image = next(iter(images))
        found += [(image, hint) for hint in _from_geojson(file)]
    return found


def _from_geojson(path: str) -> Iterator[Hint]:
    content = _json_of(path)
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list):
        raise DatasetError(f"{path}: not GeoJSON; it holds no features")
    for number, feature in enumerate(content, 1):
        where = f"{path}: feature {number}"
        for ring in _outer_rings(feature, where):
            x, y = zip(*ring, strict=True)
            yield Hint(_box(min(x), min(y), max(x), max(y), where), where, cropped=True)


def _json_of(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not GeoJSON ({error})") from error


def _outer_rings(feature: Any, where: str) -> Iterator[list[tuple[float, float]]]:
    """The outline of each polygon of a feature; holes do not change a bounding box."""
    geometry = feature.get("geometry", feature) if isinstance(feature, dict) else {}
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
        raise DatasetError(f"{where}: is a {kind or 'thing without a type'}; a region is a Polygon or a MultiPolygon")
    coordinates: Any = geometry.get("coordinates")
    try:
        for polygon in [coordinates] if kind == "Polygon" else coordinates or ():
            ring = [(_coordinate(point[0]), _coordinate(point[1])) for point in polygon[0]]
            if not ring:
                raise ValueError("an outline without points")
            yield ring
    except (TypeError, IndexError, KeyError, ValueError, OverflowError) as error:
        raise DatasetError(f"{where}: its coordinates are no {kind} ({error})") from error


def _coordinate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)
