"""What was looked at as GeoJSON: QuPath shows every node as an annotation, a GIS as a polygon on the map.

1. A node's polygon is its region within the image's bounds: the root square may reach beyond the image, and QuPath
   would draw that beside it. The whole region stands among the properties.
2. Coordinates are level-0 pixels, x right, y down, as QuPath has them; or map coordinates (``georeference``).
3. Rings run counterclockwise, as RFC 7946 asks, in the plain sense of the numbers: x right, y *up*. So every library
   that measures a signed area finds them right. On a screen with y down they appear clockwise, which QuPath,
   having no use for direction, does not mind.
4. Measurements are a list of names and values: QuPath 0.3 reads no other form, and later ones read this one too.
   It reads neither null nor NaN, so a figure that a node has not is left out.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pyrtrav.errors import ConfigError
from pyrtrav.explain.chain import is_chain, number_of, probability_after
from pyrtrav.explain.chances import chances
from pyrtrav.explain.colours import Colour
from pyrtrav.explain.glimpses import colour_of
from pyrtrav.explain.outline import colour_for, figure_of
from pyrtrav.explain.overlay import scale_for
from pyrtrav.files import written_whole
from pyrtrav.geometry import Region
from pyrtrav.tree import GEOJSON_SCHEMA, Node, ParseTree

CLASS_COLOURS: tuple[Colour, ...] = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
    *((86, 180, 233), (230, 159, 0), (240, 228, 66)),
)
"""Of the classes in their order, again from the start where they are more: Okabe and Ito's, for every eye."""

_NAMESPACE = uuid.UUID("b8f0b1c4-3a53-5c55-9a38-6a7f7c6a5a0e")

Geometry = dict[str, Any]
Figures = dict[str, float | None]


class Coordinates(Protocol):
    """Where things are in the file."""

    @property
    def members(self) -> dict[str, Any]:
        """What the collection says of them: at least ``coordinates``, their name."""

    @property
    def crs(self) -> str | None:
        """Name of the coordinate reference system, where it is another than GeoJSON's own."""

    def geometry(self, region: Region) -> Geometry:
        """Return a region of level-0 pixels as a GeoJSON geometry."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Level-0 pixels, from the file's corner or from the corner of the bounds."""

    x: float = 0.0
    y: float = 0.0

    @property
    def members(self) -> dict[str, Any]:
        return {"coordinates": "level-0 pixels", "origin": {"x": self.x, "y": self.y}}

    @property
    def crs(self) -> str | None:
        return None

    def geometry(self, region: Region) -> Geometry:
        ring = [[x - self.x, y - self.y] for x, y in corners(region)]
        return {"type": "Polygon", "coordinates": [counterclockwise(ring)]}


def to_geojson(
    tree: ParseTree, *, bounds_origin: bool = False, coordinates: Coordinates | None = None
) -> dict[str, Any]:
    """Return the tree as a FeatureCollection with a feature for every node that shows some of the image.

    Args:
        tree: what was looked at.
        bounds_origin: count from the corner of the bounds, as QuPath does where it opens a slide with OpenSlide.
        coordinates: others than pixels, such as ``georeference.MapCoordinates``.

    Raises:
        ConfigError: both are given.
    """
    if coordinates is not None and bounds_origin:
        raise ConfigError("map coordinates do not count from the corner of the bounds; ask for one or the other")
    if coordinates is None:
        coordinates = Pixels(tree.bounds.x, tree.bounds.y) if bounds_origin else Pixels()
    shown = colour_for(tree, None)
    scale, figure = scale_for(tree, shown), figure_of(shown)
    figures = _figures(tree)
    features = [
        _feature(tree, node, colour_of(node, tree, scale, figure), figures(node), coordinates)
        for node in tree.nodes
        if node.region.intersects(tree.bounds)
    ]
    named = {"crs": {"type": "name", "properties": {"name": coordinates.crs}}} if coordinates.crs else {}
    return {"type": "FeatureCollection", **named, "pyrtrav": _about(tree, coordinates), "features": features}


def save_geojson(
    tree: ParseTree,
    path: str | os.PathLike[str],
    *,
    bounds_origin: bool = False,
    coordinates: Coordinates | None = None,
) -> None:
    """Write ``to_geojson``, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.geojson`` nor ``.json``, or its folder cannot be written to.
    """
    check_geojson(path)
    text = json.dumps(to_geojson(tree, bounds_origin=bounds_origin, coordinates=coordinates), allow_nan=False)
    with written_whole(path) as beside:
        beside.write_text(text + "\n", encoding="ascii")


def check_geojson(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError where the name is not one by which GeoJSON is known."""
    if Path(path).suffix.lower() not in (".geojson", ".json"):
        raise ConfigError(f"{os.fspath(path)}: GeoJSON is written here; give a name that ends in .geojson")


def corners(region: Region) -> list[tuple[float, float]]:
    """Return the closed ring of a region."""
    left, top, right, bottom = region.x, region.y, region.right, region.bottom
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def counterclockwise(ring: list[list[float]]) -> list[list[float]]:
    """Return a closed ring in the direction that RFC 7946 asks of an outline, by the shoelace formula."""
    twice = sum(x * v - u * y for (x, y), (u, v) in pairwise(ring))
    return ring if twice > 0 else ring[::-1]


def node_id(tree: ParseTree, node: Node) -> str:
    """Return a UUID, as QuPath asks, that the same look of the same run at the same image always has."""
    record = tree.record
    image = record["input"]["fingerprint"] or record["input"]["path"]
    run = json.dumps([image, record["settings"], record["model"]["sha256"], node.id], sort_keys=True)
    return str(uuid.uuid5(_NAMESPACE, run))


def _figures(tree: ParseTree) -> Callable[[Node], Figures]:
    """What measures a look: of a chain, whose scores are all 1, its place and what was predicted after it."""
    probability = chances(tree)
    if is_chain(tree):
        return lambda node: {
            "glimpse": number_of(node),
            "contribution": node.contribution,
            "probability after": probability_after(tree, node),
            "downsample": node.downsample,
        }
    return lambda node: {
        "score": node.score,
        "contribution": node.contribution,
        "probability": probability.get(node.id),
        "depth": node.depth,
        "downsample": node.downsample,
    }


def _name(tree: ParseTree, node: Node) -> str:
    if is_chain(tree):
        return f"glimpse {number_of(node)} of {len(tree.nodes)}"
    return f"look {node.id}, depth {node.depth}"


def _feature(tree: ParseTree, node: Node, colour: Colour, figures: Figures, coordinates: Coordinates) -> dict[str, Any]:
    index = int(tree.record["prediction"]["index"])
    return {
        "type": "Feature",
        "id": node_id(tree, node),
        "geometry": coordinates.geometry(node.region.intersection(tree.bounds)),
        "properties": {
            "objectType": "annotation",
            "name": _name(tree, node),
            "color": list(colour),
            "classification": {
                "name": " ".join(tree.label.split()),
                "color": list(CLASS_COLOURS[index % len(CLASS_COLOURS)]),
            },
            # A click that moves an explanation would make it a lie.
            "isLocked": True,
            "measurements": [{"name": name, "value": value} for name, value in figures.items() if value is not None],
            "node": {
                "id": node.id,
                "parents": list(node.parents),
                "step": node.step,
                "region": asdict(node.region),
            },
        },
    }


def _about(tree: ParseTree, coordinates: Coordinates) -> dict[str, Any]:
    record = tree.record
    return {
        "schema": GEOJSON_SCHEMA,
        "version": record["version"],
        "image": record["image"],
        "size": {"width": tree.width, "height": tree.height},
        "bounds": asdict(tree.bounds),
        "mpp": tree.mpp,
        **coordinates.members,
        "prediction": record["prediction"],
        "model": record["model"],
    }
