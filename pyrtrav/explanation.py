"""A tree to files: JSON, pictures, a page and GeoJSON, all of them or none. No torch: old trees redraw anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pyrtrav.errors import ConfigError, PyramidError
from pyrtrav.explain.foveated import save_foveated
from pyrtrav.explain.geojson import check_geojson, save_geojson
from pyrtrav.explain.georeference import MapCoordinates
from pyrtrav.explain.outline import check_colour
from pyrtrav.explain.output import check_picture
from pyrtrav.explain.overlay import save_overlay
from pyrtrav.explain.page import check_page, save_page
from pyrtrav.explain.sensitivity import save_sensitivity
from pyrtrav.explain.strip import save_strip
from pyrtrav.files import written_whole
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.inspect import fingerprint
from pyrtrav.tree import ParseTree

Name = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Targets:
    """Which files are made of a tree, and how."""

    out: Name | None = None
    """The tree itself, JSON; None for a tree that is saved already."""
    overlay: Name | None = None
    """The regions over the thumbnail, PNG or PDF."""
    foveated: Name | None = None
    """Every place at the resolution at which it was seen, PNG or PDF."""
    strip: Name | None = None
    """What each glimpse of a chain saw, or the looks that matter most, side by side, PNG or PDF."""
    occlusion: Name | None = None
    """How much noise over each place changes the prediction, over the thumbnail, PNG or PDF."""
    page: Name | None = None
    """Picture, tree and figures to explore, HTML; needs the extra ``html``."""
    geojson: Name | None = None
    """The regions as annotations for QuPath or polygons for a GIS."""
    colour: str | None = None
    """The figure that overlay, strip and page show as colour: ``score`` or ``contribution``; None: what tells more."""
    bounds_origin: bool = False
    """GeoJSON counts from the corner of the slide's bounds, as QuPath does, not from that of the file."""
    drawn_from: Name | None = None
    """The saved tree that is drawn, which is not to be overwritten."""
    crs: str | None = None
    """GeoJSON on the map, ``wgs84`` or ``native``, instead of pixels; needs the extra ``geo``."""

    def named(self) -> dict[str, Name]:
        """Return the files that are asked for, by kind. The tree comes first."""
        kinds = {
            "tree": self.out,
            "overlay": self.overlay,
            "foveated": self.foveated,
            "strip": self.strip,
            "occlusion": self.occlusion,
            "page": self.page,
            "geojson": self.geojson,
        }
        return {kind: name for kind, name in kinds.items() if name is not None}

    def check(self, image: Name) -> None:
        """Raise ConfigError before anything is looked at where a file could not be written, or would harm the image."""
        named = self.named()
        for kind, name in named.items():
            _CHECKS[kind](name)
        if self.geojson is None and (self.bounds_origin or self.crs is not None):
            raise ConfigError("--bounds-origin and --crs say how GeoJSON counts; name its file with --geojson")
        if self.crs is not None and self.bounds_origin:
            raise ConfigError("map coordinates do not count from the bounds: give --crs or --bounds-origin, not both")
        if self.crs is not None:
            MapCoordinates.of(image, self.crs)
        check_colour(self.colour)
        paths = [Path(name).absolute() for name in named.values()]
        if len({path.resolve() for path in paths}) < len(paths):
            raise ConfigError("two results would be written to the same file; give each its own name")
        for path in paths:
            _check_place(path, Path(image).resolve())
            if self.drawn_from is not None and path.resolve() == Path(self.drawn_from).resolve():
                raise ConfigError(f"{path}: would overwrite the tree that is drawn; choose another name")


def default_overlay(out: Name) -> Path:
    """Beside the tree, with its name."""
    return Path(out).with_suffix(".png")


def is_as_it_was(tree: ParseTree, image: Name | None = None) -> bool:
    """Whether an image has the content and time of that which was looked at; also where that cannot be told.

    Args:
        image: the image; by default where the tree says that it was.
    """
    source = tree.record["input"]
    try:
        return source["fingerprint"] in (None, fingerprint(image or source["path"]))
    except PyramidError:
        return True


def write(tree: ParseTree, targets: Targets, *, image: Name | None = None) -> dict[str, str]:
    """Draw and write a tree; returns what was written, by kind.

    Args:
        image: the image; by default where the tree says that it was.

    Raises:
        ConfigError: a name that cannot be written, or an option that this tree or image does not allow.
        PyramidError: the image cannot be read. Nothing is written then.
    """
    path = image or tree.record["input"]["path"]
    targets.check(path)
    named = targets.named()
    # Renamed last first: a tree that is there has its pictures.
    with ExitStack() as stack:
        beside = {kind: stack.enter_context(written_whole(name)) for kind, name in named.items()}
        if "tree" in beside:
            tree.save(beside["tree"])
        if "geojson" in beside:
            place = MapCoordinates.of(path, targets.crs) if targets.crs is not None else None
            save_geojson(tree, beside["geojson"], bounds_origin=targets.bounds_origin, coordinates=place)
        if not beside.keys().isdisjoint({"overlay", "foveated", "strip", "occlusion", "page"}):
            with _reopened(tree, path) as pyramid:
                _draw(tree, pyramid, beside, targets.colour)
    return {kind: os.fspath(name) for kind, name in named.items()}


def _draw(tree: ParseTree, pyramid: Pyramid, beside: dict[str, Path], colour: str | None) -> None:
    if "overlay" in beside:
        save_overlay(tree, pyramid, beside["overlay"], colour=colour)
    if "foveated" in beside:
        save_foveated(tree, pyramid, beside["foveated"])
    if "strip" in beside:
        save_strip(tree, pyramid, beside["strip"], colour=colour)
    if "occlusion" in beside:
        save_sensitivity(tree, pyramid, beside["occlusion"])
    if "page" in beside:
        save_page(tree, pyramid, beside["page"], colour=colour)


def _reopened(tree: ParseTree, path: Name) -> Pyramid:
    """The image with the pixels that were looked at: its channels and window are those of the tree."""
    source = tree.record["input"]
    channels = source.get("chosen") or source.get("channels")
    window = tuple(source["window"]) if source.get("window") else None
    return open_pyramid(path, mpp=tree.mpp, channels=channels, window=window)


def _check_tree(name: Name) -> None:
    if Path(name).suffix.lower() != ".json":
        raise ConfigError(f"{name}: a parse tree is written as JSON; give a name that ends in .json")


_CHECKS: dict[str, Callable[[Name], None]] = {
    "tree": _check_tree,
    "overlay": check_picture,
    "foveated": check_picture,
    "strip": check_picture,
    "occlusion": check_picture,
    "page": check_page,
    "geojson": check_geojson,
}


def _check_place(path: Path, image: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    if image == path.resolve() or image in path.resolve().parents:
        raise ConfigError(f"{path}: would overwrite the image; choose another name")
