"""``explain`` at the command line: every file that it makes, from a fresh run and from a saved tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from geojson_pydantic import FeatureCollection
from PIL import Image
from rasterio.transform import Affine

from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.inspect import fingerprint
from pyrtrav.tree import ParseTree
from tests.browser import chromium, opened
from tests.leica import write_leica
from tests.program import run_program
from tests.samples import REPOSITORY, SLIDE
from tests.trees import grown_tree

PICTURE = REPOSITORY / "docs" / "page.png"


def test_all_files_from_a_run_and_again_from_the_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wanted(folder: Path) -> list[str]:
        folder.mkdir()
        names = {"--overlay": "o.pdf", "--foveated": "f.png", "--html": "p.html", "--geojson": "g.geojson"}
        return [word for flag, name in names.items() for word in (flag, str(folder / name))]

    done = run_program(capsys, monkeypatch, "explain", SLIDE, "--out", tmp_path / "t.json", *wanted(tmp_path / "a"))
    assert done.code == 0, done.err
    again = run_program(capsys, monkeypatch, "explain", "--tree", tmp_path / "t.json", *wanted(tmp_path / "b"))
    assert again.code == 0, again.err
    for name in ("o.pdf", "f.png", "p.html", "g.geojson"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "t.json"]
    tree = ParseTree.load(tmp_path / "t.json")
    assert len(json.loads((tmp_path / "a" / "g.geojson").read_text())["features"]) == len(tree.nodes)


def test_bounds_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def explained(image: Path, *words: object) -> dict[str, Any]:
        target = tmp_path / "a.geojson"
        done = run_program(
            capsys, monkeypatch, "explain", image, "--out", tmp_path / "a.json", "--geojson", target, *words
        )
        assert done.code == 0, done.err
        found = json.loads(target.read_text())
        FeatureCollection(**found)
        return found

    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    write_leica(tmp_path / "a.scn", pixels, (3000, 2000), (600, 300))
    whole, cropped = (explained(tmp_path / "a.scn", *words) for words in ((), ("--bounds-origin",)))
    places = [np.array(found["features"][0]["geometry"]["coordinates"][0]) for found in (whole, cropped)]
    assert places[1].min(0).tolist() == [0, 0]
    assert places[1].max(0).tolist() == [1024, 1024]
    assert ((places[0] - places[1]) == (600, 300)).all()

    place = Affine(10, 0, 500_000, 0, -10, 5_200_000)
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", width=1024, height=1024, count=3, dtype="uint8", tiled=True,
        crs="EPSG:32633", transform=place,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
    native = np.array(explained(tmp_path / "map.tif", "--crs", "native")["features"][0]["geometry"]["coordinates"][0])
    assert native.min(0).tolist() == [500_000, 5_189_760]
    globe = np.array(explained(tmp_path / "map.tif", "--crs", "wgs84")["features"][0]["geometry"]["coordinates"][0])
    assert globe.min(0) == pytest.approx((15, 46.86), abs=0.01)  # the zone's middle; Carinthia


def test_what_cannot_be_is_told_before_anything_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ["explain", SLIDE, "--out", tmp_path / "a.json"]
    for words, message in (
        (["--overlay", tmp_path / "a.svg"], "ends in .png or .pdf"),
        (["--html", tmp_path / "a.txt"], "ends in .html"),
        (["--geojson", tmp_path / "a.txt"], "ends in .geojson"),
        (["--crs", "wgs84"], "--geojson"),
        (["--bounds-origin"], "--geojson"),
        (["--geojson", tmp_path / "a.geojson", "--crs", "wgs84"], "has no map coordinates"),
        (["--geojson", tmp_path / "a.geojson", "--crs", "utm"], "wgs84"),
        (["--colour", "scores"], "did you mean 'score'"),
        (["--geojson", tmp_path / "none" / ".." / "a.json"], "written to the same file"),
    ):
        done = run_program(capsys, monkeypatch, *target, *words)
        assert done.code == 2, words
        assert message in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved_tree(tmp_path: Path) -> Path:
    """A tree of a copy of the slide, which lies beside it."""
    image = tmp_path / "a.svs"
    shutil.copy(SLIDE, image)
    with open_pyramid(image) as pyramid:
        tree = grown_tree(pyramid, 2)
    tree.record["input"] |= {"path": str(image), "fingerprint": fingerprint(image)}
    tree.save(tmp_path / "t.json")
    return tmp_path / "t.json"


def test_options_that_do_not_go_with_a_saved_tree_are_refused(
    saved_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sorted(saved_tree.parent.iterdir())
    for words, message in (
        (["--model", "none.safetensors"], "--model says how to look"),
        (["--select", "topk"], "--select"),
        (["--tau", "0.5"], "--tau"),
        (["--k", "2"], "--k"),
        (["--budget", "5"], "--budget"),
        (["--depth", "1"], "--depth"),
        (["--seed", "0"], "--seed"),
        (["--device", "auto"], "--device"),
        (["--mpp", "-1"], "mpp"),
        (["--geojson", saved_tree.with_name("a.geojson"), "--colour", "score"], "--colour is of the overlay"),
        (["--geojson", saved_tree.with_name("a.geojson"), "--crs", ""], "wgs84"),
        (["--crs", ""], "--geojson"),
        (["--geojson", saved_tree], "would overwrite the tree that is drawn"),
    ):
        done = run_program(capsys, monkeypatch, "explain", "--tree", saved_tree, *words)
        assert done.code == 2, words
        assert message in " ".join(done.err.replace("│", " ").split()), (words, done.err)
    assert sorted(saved_tree.parent.iterdir()) == there


def test_a_tree_is_drawn_on_another_image_with_a_warning(
    saved_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, picture = saved_tree.with_name("a.svs"), saved_tree.with_name("t.png")
    done = run_program(capsys, monkeypatch, "explain", "--tree", saved_tree)
    assert (done.code, done.err) == (0, "")
    pixels = np.zeros((8192, 8192), np.uint8)
    tifffile.imwrite(saved_tree.with_name("other.tif"), pixels, tile=(512, 512), compression="deflate")
    for words in ((), (saved_tree.with_name("other.tif"), "--json")):
        if not words:
            os.utime(image, (1, 1))
        picture.unlink()
        done = run_program(capsys, monkeypatch, "explain", "--tree", saved_tree, *words)
        assert done.code == 0, done.err
        assert "is not the image as it was" in done.err
        assert str(words[0] if words else image) in done.err
        assert picture.exists()


def test_a_saved_tree_is_drawn_with_another_mpp(
    saved_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = saved_tree.with_name("a.geojson")
    done = run_program(capsys, monkeypatch, "explain", "--tree", saved_tree, "--geojson", target, "--mpp", "7.5")
    assert done.code == 0, done.err
    assert '"mpp": 7.5' in target.read_text()


def test_redrawing_a_png_is_light(tmp_path: Path) -> None:
    """A tree is drawn without what only other files need."""
    with open_pyramid(SLIDE) as pyramid:
        tree = grown_tree(pyramid, 2)
        tree.record["input"]["path"] = str(SLIDE)
        tree.save(tmp_path / "t.json")
    code = (
        "import sys\n"
        f"sys.argv = ['pyrtrav', 'explain', '--tree', {str(tmp_path / 't.json')!r}]\n"
        "from pyrtrav.cli.app import app; app(standalone_mode=False)\n"
        "heavy = {'torch', 'bokeh', 'matplotlib', 'jinja2', 'rasterio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "t.png").exists()


def test_the_documented_pictures_are_those_of_the_slide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYRTRAV_SCREENSHOTS=docs python -m pytest tests/test_explanation.py -k pictures    makes them anew."""
    words = ("explain", SLIDE, "--out", tmp_path / "tree.json", "--html", tmp_path / "tree.html")
    assert run_program(capsys, monkeypatch, *words).code == 0
    strip = ("--strip", tmp_path / "strip.png", "--colour", "contribution")
    assert run_program(capsys, monkeypatch, "explain", "--tree", tmp_path / "tree.json", *strip).code == 0
    with chromium() as browser, opened(browser, tmp_path / "tree.html", width=1280, height=900) as page:
        page.wait_for_function("window.Bokeh && [...Bokeh.index.roots].some((one) => one.child_views.length == 2)")
        page.wait_for_timeout(500)
        box = page.locator("#plots").bounding_box()
        assert box is not None
        for x, y, press in ((0.12, 0.36, True), (0.4, 0.7, False)):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if press:
                page.mouse.down()
                page.mouse.up()
            page.wait_for_timeout(400)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    folder = os.environ.get("PYRTRAV_SCREENSHOTS")
    if folder:
        shutil.copy(tmp_path / "strip.png", folder)
    with Image.open(tmp_path / "strip.png") as strip_now, Image.open(PICTURE.with_name("strip.png")) as strip_then:
        # The cost says how much was read, which may differ.
        above, below = (0, 0, strip_now.width, 60), (0, 105, *strip_now.size)
        for part in (above, below):
            assert strip_now.crop(part).tobytes() == strip_then.crop(part).tobytes()
    with Image.open(tmp_path / "page.png") as shot:
        if folder:
            shot.convert("RGB").save(Path(folder) / "page.png", optimize=True)
        assert PICTURE.stat().st_size < 300_000
        with Image.open(PICTURE) as documented:
            assert documented.size[0] == shot.size[0]
            small = [np.asarray(one.convert("RGB").resize((64, 48))).astype(int) for one in (shot, documented)]
    # Fonts and versions of Chromium differ; another page would differ more.
    assert np.abs(small[0] - small[1]).mean() < 8
