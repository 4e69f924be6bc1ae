"""GeoJSON: valid to an independent reader, on the mark in pixels and on the map, and what QuPath reads."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from geojson_pydantic import FeatureCollection
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine
from rasterio.warp import transform

from pyrtrav.errors import ConfigError, TreeError
from pyrtrav.explain import draw_overlay
from pyrtrav.explain.geojson import CLASS_COLOURS, save_geojson, to_geojson
from pyrtrav.explain.georeference import MapCoordinates
from pyrtrav.explanation import Targets, write
from pyrtrav.geometry import Region, root_region
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.training.data import Dataset, Example
from pyrtrav.training.hints import load_hints
from pyrtrav.tree import GEOJSON_SCHEMA, ParseTree, check
from tests.leica import write_leica
from tests.trees import as_tree, box_where, grown_tree, look, noise, with_contributions

MARK = (200, 0, 0)


def grown(**options: Any) -> ParseTree:
    return grown_tree(ArrayPyramid(noise(300, 500)), 3, **options)


def ring(feature: dict[str, Any]) -> list[list[float]]:
    assert feature["geometry"]["type"] == "Polygon"
    (outline,) = feature["geometry"]["coordinates"]
    return outline


def box(feature: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom."""
    x, y = zip(*ring(feature), strict=True)
    return min(x), min(y), max(x), max(y)


def measurements(feature: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["value"] for one in feature["properties"]["measurements"]}


def signed_area(outline: list[list[float]]) -> float:
    """By triangles from the first corner."""
    (x, y), *others = outline
    turns = pairwise(others)
    return sum((a - x) * (d - y) - (c - x) * (b - y) for (a, b), (c, d) in turns) / 2


# In pixels.


@pytest.mark.parametrize("bounds_origin", [False, True])
def test_valid_to_an_independent_reader(bounds_origin: bool) -> None:
    tree = with_contributions(grown())
    data = json.loads(json.dumps(to_geojson(tree, bounds_origin=bounds_origin)))
    found = FeatureCollection(**data)
    assert len(found.features) == len(tree.nodes) > 30
    check(data, GEOJSON_SCHEMA, "the test's")
    for feature in data["features"]:
        outline = ring(feature)
        assert outline[0] == outline[-1]
        assert signed_area(outline) > 0  # counterclockwise, as RFC 7946 asks
        assert len(outline) == 5


def test_the_schema_refuses_what_is_none() -> None:
    data = to_geojson(grown())
    data["features"][0]["properties"]["measurements"].append({"name": "score", "value": None})
    with pytest.raises(TreeError, match="features/0/properties/measurements"):
        check(data, GEOJSON_SCHEMA, "it")


def test_regions_are_cut_at_the_image_and_kept_whole_beside() -> None:
    """The root is a square around a wide image."""
    tree = grown()
    features = to_geojson(tree)["features"]
    assert box(features[0]) == (0, 0, 500, 300)
    assert features[0]["properties"]["node"]["region"] == {"x": 0, "y": -100, "width": 500, "height": 500}
    for feature, node in zip(features, tree.nodes, strict=True):
        inside = node.region.intersection(Region(0, 0, 500, 300))
        assert box(feature) == (inside.x, inside.y, inside.right, inside.bottom)


def test_a_look_that_shows_nothing_of_the_image_is_left_out() -> None:
    pyramid = ArrayPyramid(noise(100, 100))
    tree = as_tree(pyramid, [look(0, 0, Region(0, 0, 100, 100)), look(1, 0, Region(100, 0, 50, 50))])
    assert len(to_geojson(tree)["features"]) == 1


def test_figures_are_the_nodes() -> None:
    tree = with_contributions(grown())
    for feature, node in zip(to_geojson(tree)["features"], tree.nodes, strict=True):
        found = measurements(feature)
        assert found["score"] == node.score
        assert found["depth"] == node.depth
        assert found["downsample"] == node.downsample
        assert found.get("contribution") == node.contribution
        edges = [cell.probability for other in tree.nodes for cell in other.cells if cell.node == node.id]
        assert found.get("probability") == max(edges, default=None)
    assert "contribution" not in measurements(to_geojson(grown())["features"][5])


def test_what_qupath_reads() -> None:
    """Its adapter takes these names and types, and stumbles over null."""
    tree = grown()
    feature = to_geojson(tree)["features"][3]
    properties = feature["properties"]
    assert properties["objectType"] == "annotation"
    assert properties["classification"] == {"name": "lesion", "color": list(CLASS_COLOURS[0])}
    assert isinstance(properties["name"], str)
    assert len(properties["color"]) == 3
    assert all(isinstance(value, int | float) for value in measurements(feature).values())
    assert "null" not in json.dumps(to_geojson(tree)["features"])
    # A class of QuPath has one line.
    prediction = {"label": "a\nb", "index": 9, "probabilities": {"a\nb": 1.0}}
    odd = replace(tree, record=tree.record | {"prediction": prediction})
    assert to_geojson(odd)["features"][0]["properties"]["classification"]["name"] == "a b"


def test_ids_are_uuids_that_stay_and_differ() -> None:
    tree = grown()
    ids = [feature["id"] for feature in to_geojson(tree)["features"]]
    assert len(set(ids)) == len(ids)
    assert all(uuid.UUID(one).version == 5 for one in ids)
    assert [feature["id"] for feature in to_geojson(tree, bounds_origin=True)["features"]] == ids
    for change in (
        {"settings": tree.record["settings"] | {"k": 7}},
        {"model": tree.record["model"] | {"sha256": "1" * 64}},
        {"input": {"path": "/slide.svs", "fingerprint": "another"}},
    ):
        other = replace(tree, record=tree.record | change)
        assert {feature["id"] for feature in to_geojson(other)["features"]}.isdisjoint(ids)
    moved = replace(tree, record=tree.record | {"image": "renamed.svs"})
    assert [feature["id"] for feature in to_geojson(moved)["features"]] == ids


def test_a_mark_on_a_slide_with_bounds_is_hit(tmp_path: Path) -> None:
    """OpenSlide's own bounds; the pixels at a feature's coordinates are those that the node looked at."""
    pixels = np.full((1024, 1536, 3), 230, np.uint8)
    pixels[320:448, 512:704] = MARK
    bounds = write_leica(tmp_path / "slide.scn", pixels, (4000, 3000), (701, 903))
    mark = Region(bounds.x + 512, bounds.y + 320, 192, 128)
    with open_pyramid(tmp_path / "slide.scn") as pyramid:
        assert pyramid.bounds == bounds
        nodes = [look(0, 0, root_region(bounds, 64)), look(1, 3, mark)]
        tree = as_tree(pyramid, nodes)
    whole, marked = (to_geojson(tree, bounds_origin=cropped) for cropped in (False, True))
    assert box(whole["features"][1]) == (mark.x, mark.y, mark.right, mark.bottom)
    # QuPath shows the bounds alone, from (0, 0): as the array that was written.
    left, top, right, bottom = map(int, box(marked["features"][1]))
    assert (left, top, right, bottom) == (512, 320, 704, 448)
    assert (pixels[top:bottom, left:right] == MARK).all()
    assert (whole["pyrtrav"]["origin"], marked["pyrtrav"]["origin"]) == ({"x": 0, "y": 0}, {"x": 701, "y": 903})
    assert whole["pyrtrav"]["bounds"] == {"x": 701, "y": 903, "width": 1536, "height": 1024}
    with openslide.OpenSlide(tmp_path / "slide.scn") as slide:
        x, y, right, bottom = map(int, box(whole["features"][1]))
        size = right - x + 40, bottom - y + 40
        seen = np.asarray(slide.read_region((x - 20, y - 20), 0, size))
    assert box_where(is_red(seen)) == pytest.approx((20, 20, size[0] - 20, size[1] - 20), abs=1)  # JPEG blurs
    # The glance is cut at the bounds, so that nothing lies beside what QuPath shows.
    assert box(marked["features"][0]) == (0, 0, 1536, 1024)


def test_the_overlay_of_a_slide_with_bounds_hits_the_mark(tmp_path: Path) -> None:
    """What the outline changes in the picture lies where the mark is seen."""
    pixels = np.full((1024, 1536, 3), 230, np.uint8)
    pixels[320:448, 512:704] = MARK
    bounds = write_leica(tmp_path / "slide.scn", pixels, (4000, 3000), (701, 903))
    with open_pyramid(tmp_path / "slide.scn") as pyramid:
        nodes = [look(0, 0, root_region(bounds, 64)), look(1, 3, Region(bounds.x + 512, bounds.y + 320, 192, 128))]
        # A third, so that the legend is the same in both.
        nodes.append(look(2, 3, Region(bounds.x, bounds.y, 64, 64)))
        away = replace(nodes[1], region=nodes[2].region)
        bare, drawn = (
            np.asarray(draw_overlay(as_tree(pyramid, [nodes[0], node, nodes[2]]), pyramid)) for node in (away, nodes[1])
        )
    assert box_where((bare != drawn).any(2)) == pytest.approx(box_where(is_red(bare)), abs=3)


def is_red(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return pixels[..., 0].astype(int) - pixels[..., 1] > 80


def test_coordinates_on_real_slides_with_bounds(data: Path) -> None:
    """A slide of a scanner that leaves a margin; the pixels must be those that OpenSlide shows from the bounds."""
    found = []
    for path in sorted([*data.glob("slides/*.mrxs"), *data.glob("slides/*.scn"), *data.glob("slides/*.ndpi")]):
        with open_pyramid(path) as pyramid:
            if (pyramid.bounds.x, pyramid.bounds.y) != (0, 0):
                found.append((path, pyramid.bounds))
    if not found:
        pytest.skip("none of the real slides has bounds other than its size")
    for path, bounds in found:
        with open_pyramid(path) as pyramid:
            tree = grown_tree(pyramid, 2)
        for feature, other in zip(
            to_geojson(tree)["features"], to_geojson(tree, bounds_origin=True)["features"], strict=True
        ):
            assert np.allclose(np.subtract(ring(feature), ring(other)), (bounds.x, bounds.y))


def test_our_own_training_takes_it_as_hints(tmp_path: Path) -> None:
    """As QuPath's GeoJSON: polygons that count from the bounds."""
    pyramid = ArrayPyramid(noise(300, 500))
    pyramid.bounds = Region(50, 20, 400, 250)
    tree = grown_tree(pyramid, 2)
    save_geojson(tree, tmp_path / "slide.geojson", bounds_origin=True)
    dataset = Dataset(("a",), (Example("slide.tif", 0, "train", None, ""),), ())
    hints = load_hints(tmp_path / "slide.geojson", dataset).of("slide.tif", pyramid)
    expected = [node.region.intersection(pyramid.bounds) for node in tree.nodes]
    assert [hint.as_tuple() for hint in hints] == [pytest.approx(region.as_tuple()) for region in expected]


# On the map.

UTM, PLACE = "EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_200_000)


def write_map(path: Path, transform: Affine = PLACE, crs: str | None = UTM, side: int = 400) -> Path:
    pixels = np.zeros((side, side, 3), np.uint8)
    if crs is None:
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128))
        return path
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", tiled=True, crs=crs,
        transform=transform,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def on_the_map(path: Path, points: list[tuple[float, float]]) -> tuple[str, list[float], list[float]]:
    """Where rasterio puts corners of pixels (column, row): system, x and y."""
    columns, rows = zip(*points, strict=True)
    with rasterio.open(path) as file:
        x, y = rasterio.transform.xy(file.transform, rows, columns, offset="ul")
        return file.crs, list(x), list(y)


def map_tree(path: Path) -> ParseTree:
    with open_pyramid(path) as pyramid:
        return grown_tree(pyramid, 2)


@pytest.mark.parametrize(
    "place", [PLACE, Affine(8, 3, 500_000, 2, -9, 5_200_000), Affine(10, 0, 5e5, 0, 10, 5.2e6)], ids=str
)
def test_native_coordinates_are_rasterios(tmp_path: Path, place: Affine) -> None:
    """North up, turned, and upside down."""
    path = write_map(tmp_path / "map.tif", place)
    tree = map_tree(path)
    data = to_geojson(tree, coordinates=MapCoordinates.of(path, "native"))
    FeatureCollection(**data)
    check(data, GEOJSON_SCHEMA, "the test's")
    assert data["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    for feature, node in zip(data["features"], tree.nodes, strict=True):
        region = node.region.intersection(tree.bounds)
        corners = [(x, y) for x in (region.x, region.right) for y in (region.y, region.bottom)]
        expected = np.column_stack(on_the_map(path, corners)[1:])
        outline = ring(feature)
        assert all(np.isclose(outline, corner, rtol=0, atol=1e-6).all(1).any() for corner in expected)
        assert signed_area(outline) > 0


def test_longitude_and_latitude_are_rasterios(tmp_path: Path) -> None:
    """Edges have points between their corners: on the map they are curves."""
    path = write_map(tmp_path / "map.tif", Affine(500, 0, 500_000, 0, -500, 5_200_000))  # 200 km
    tree = map_tree(path)
    data = to_geojson(tree, coordinates=MapCoordinates.of(path))
    FeatureCollection(**data)
    assert "crs" not in data
    outline = np.array(ring(data["features"][0]))
    edge = [(50 * i, 0) for i in range(9)] + [(400, 50 * i) for i in range(9)]
    crs, x, y = on_the_map(path, edge)
    expected = np.column_stack(transform(crs, "EPSG:4326", x, y))
    distance = np.abs(outline[None] - expected[:, None]).max(2).min(1)
    assert distance[:9:4].max() < 1e-8  # corners and middle
    assert distance.max() < 1e-8
    assert all(signed_area(ring(feature)) > 0 for feature in data["features"])
    # The middle of the southern edge is not where a straight line would have it: by a hundred metres or more.
    south, middle = expected[[0, 8]].mean(0), expected[4]
    assert abs(south - middle).max() * 111_000 > 100


def test_what_crosses_the_180th_meridian_is_cut_there(tmp_path: Path) -> None:
    path = write_map(tmp_path / "fiji.tif", Affine(100, 0, 800_000, 0, -100, 8_000_000), "EPSG:32760")
    data = to_geojson(map_tree(path), coordinates=MapCoordinates.of(path))
    FeatureCollection(**data)
    geometry = data["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    parts = [np.array(rings[0]) for rings in geometry["coordinates"]]
    assert sorted(round(float(abs(part[:, 0]).max()), 6) for part in parts) == [180, 180]
    assert all(np.ptp(part[:, 0]) < 1 for part in parts)
    assert {float(np.sign(part[:, 0]).min()) for part in parts} == {-1.0, 1.0}


def test_files_without_map_coordinates_are_told(tmp_path: Path) -> None:
    bare = write_map(tmp_path / "bare.tif", crs=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for path, message in (
        (bare, "neither a transform nor a system"),
        (tmp_path / "a.png", "is no GeoTIFF"),
        (tmp_path / "none.tif", "on a disk"),
        ("https://example.org/a.tif", "on a disk"),
    ):
        with pytest.raises(ConfigError, match=message):
            MapCoordinates.of(path)
    with pytest.raises(ConfigError, match="did you mean 'wgs84'"):
        MapCoordinates.of(bare, "wgs85")
    odd = write_map(tmp_path / "odd.tif", crs="+proj=laea +lat_0=12.3 +lon_0=4.5 +ellps=bessel +units=m")
    with pytest.raises(ConfigError, match="no EPSG number"):
        MapCoordinates.of(odd, "native")
    assert MapCoordinates.of(odd).crs is None


def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "from pyrtrav.errors import ConfigError\n"
        "from pyrtrav.explain.georeference import MapCoordinates\n"
        "try: MapCoordinates.of('a.tif')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyrtrav[geo]'" in done.stdout


# Files.


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", crs=None)
    tree = replace(map_tree(path), record=map_tree(path).record | {"input": {"path": str(path), "fingerprint": None}})
    targets = Targets(out=tmp_path / "t.json", overlay=tmp_path / "t.png", geojson=tmp_path / "t.geojson", crs="wgs84")
    with pytest.raises(ConfigError, match="no map coordinates"):
        write(tree, targets)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.tif"]
    write(tree, replace(targets, crs=None, bounds_origin=True))
    assert json.loads((tmp_path / "t.geojson").read_text()) == to_geojson(tree, bounds_origin=True)
    with pytest.raises(ConfigError, match=r"ends in \.geojson"):
        save_geojson(tree, tmp_path / "t.txt")
    for wrong, message in (
        (Targets(crs="wgs84"), "--geojson"),
        (Targets(geojson=tmp_path / "u.geojson", crs="native", bounds_origin=True), "not both"),
        (Targets(out=tmp_path / "t.json", geojson=tmp_path / "t.json"), "same file"),
    ):
        with pytest.raises(ConfigError, match=message):
            write(tree, wrong)
