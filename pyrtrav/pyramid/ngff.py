"""OME-NGFF metadata, versions 0.1 to 0.5: which image of a hierarchy, its levels, axes and scale.

A *collection* (bioformats2raw's layout) holds images ``0``, ``1``, ...; a *plate* holds wells, a well images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.pixels import Window
from pyrtrav.pyramid.zarr_store import Store, read_json

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

# Images that a message or a property names.
_NAMED = 4


class ImageGroup(NamedTuple):
    """The group of one multiscale image."""

    name: str
    """Where it is in the hierarchy; empty for its root."""
    attributes: Mapping[str, Any]
    others: str
    """The other images of its collection, in words; empty where it stands alone."""


def image_group(path: str, store: Store) -> ImageGroup:
    """Return the root's image, or the first of a collection.

    Raises:
        UnsupportedFormatError: a plate, a well, or no image at all; says which images there are.
    """
    root = attributes_of(store, "")
    if _multiscales(root):
        return ImageGroup("", root, "")
    if "plate" in root or "well" in root:
        _refuse_plate(path, store, root)
    names = _collection(path, store)
    first = next(names, None)
    if first is None:
        raise UnsupportedFormatError(f"{path}: is zarr, but no OME-Zarr image: it has no `multiscales` metadata")
    attributes = attributes_of(store, first)
    if not _multiscales(attributes):
        raise CorruptImageError(path, f"its first image {first!r} has no `multiscales` metadata")
    return ImageGroup(first, attributes, _listed(names))


def attributes_of(store: Store, group: str) -> Mapping[str, Any]:
    """Return a group's OME metadata; none where there is no such group."""
    below = f"{group}/" if group else ""
    said = read_json(store, f"{below}zarr.json")
    if said is not None:
        attributes = said.get("attributes", {})
        found = attributes.get("ome", attributes)
    else:
        found = read_json(store, f"{below}.zattrs") or {}
    return found if isinstance(found, dict) else {}


def checked_name(path: str, name: str) -> str:
    """Return the name of a part of the hierarchy, which must lie inside of it."""
    if name.startswith("/") or ".." in name.split("/"):
        raise CorruptImageError(path, f"its level or image {name!r} lies outside of it")
    return name.strip("/")


def _multiscales(attributes: Mapping[str, Any]) -> bool:
    found = attributes.get("multiscales")
    return isinstance(found, list) and bool(found)


def _collection(path: str, store: Store) -> Iterator[str]:
    """The images of a collection: those that its metadata name, else those that are numbered."""
    series = attributes_of(store, "OME").get("series")
    if isinstance(series, list) and series:
        yield from (checked_name(path, str(name)) for name in series)
        return
    for number in count():
        if not _multiscales(attributes_of(store, str(number))):
            return
        yield str(number)


def _listed(names: Iterator[str]) -> str:
    """The first of many names, and how many more there are."""
    first = list(islice(names, _NAMED))
    more = sum(1 for _ in names)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _refuse_plate(path: str, store: Store, root: Mapping[str, Any]) -> None:
    if "plate" in root:
        plate = root["plate"] if isinstance(root["plate"], dict) else {}
        wells = [checked_name(path, str(well["path"])) for well in plate.get("wells") or ()]
        what = f"a plate of {len(wells)} well{'s' * (len(wells) != 1)}"
    else:
        wells, what = [""], "a well"
    images = (image for well in wells for image in _images_of_well(path, store, well))
    named = _listed(f"{path}/{image}" for image in images)
    raise UnsupportedFormatError(
        f"{path}: is {what} with many images; open one of them: {named}"
        if named
        else f"{path}: is {what} without images"
    )


def _images_of_well(path: str, store: Store, well: str) -> Iterator[str]:
    said = attributes_of(store, well).get("well")
    for image in (said.get("images") or ()) if isinstance(said, dict) else ():
        yield "/".join(filter(None, (well, checked_name(path, str(image["path"])))))


def axes_of(said: Any, dimensions: int) -> list[tuple[str, str | None]]:
    """Return (name, unit) of every axis; before version 0.3 they are the last of t, c, z, y, x."""
    if not said:
        return [(name, None) for name in "tczyx"[5 - dimensions :]]
    return [(axis, None) if isinstance(axis, str) else (axis["name"], axis.get("unit")) for axis in said]


def mpp_of(multiscale: Mapping[str, Any], dataset: Mapping[str, Any], x: int, unit: str | None) -> float | None:
    """Return micrometres per pixel of the finest level; None without a unit, for then 1 measures nothing."""
    if unit not in MICROMETRES:
        return None
    scale = MICROMETRES[unit]
    for said in (dataset, multiscale):
        for transform in said.get("coordinateTransformations") or ():
            if transform.get("type") == "scale":
                scale *= float(transform["scale"][x])
    return scale


def omero_window(omero: Any, wanted: Sequence[int]) -> Window | None:
    """Return the range that holds the display ranges of the channels."""
    try:
        windows = [omero["channels"][channel]["window"] for channel in wanted]
        low = min(float(window.get("start", window.get("min"))) for window in windows)
        high = max(float(window.get("end", window.get("max"))) for window in windows)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        return None
    return (low, high) if high > low else None
