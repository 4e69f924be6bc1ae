"""Chains of glimpses: numbers stand at their outlines, and the strip shows what was seen there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
import torch
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain import draw_overlay, draw_strip, save_overlay, save_page, save_strip, to_geojson
from pyrtrav.explain.badges import place_badges
from pyrtrav.explain.chain import is_chain
from pyrtrav.explain.vector import PIXELS_AN_INCH
from pyrtrav.geometry import Region, root_region
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, save_model
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tree import GEOJSON_SCHEMA, Node, ParseTree, check
from tests.browser import chromium, opened
from tests.program import run_program
from tests.samples import SLIDE, TISSUE
from tests.trees import as_tree, grown_tree, look, noise, with_contributions

BASE = 32
SHARES = (0.2, 0.4, 0.55, 0.9, 0.97)
"""How probable the lesion was after each glimpse."""

APART = [(0.35, 0.3, 0.3), (0.2, 0.7, 0.8), (0.25, 0.75, 0.3), (0.2, 0.2, 0.8)]
NESTED = [(0.5, 0.5, 0.5), (0.4, 0.5, 0.5), (0.3, 0.5, 0.5), (0.2, 0.5, 0.5)]
ALIKE = [(0.3, 0.4, 0.4), (0.3, 0.4, 0.4), (0.301, 0.4, 0.4), (0.3, 0.401, 0.4)]
AT_EDGES = [(0.2, 0.1, 0.1), (0.2, 0.9, 0.9), (0.2, 0.12, 0.1), (0.5, 0.75, 0.25)]

VERMILION, BLUE, DARK = (166, 54, 3), (8, 72, 140), (28, 28, 28)


def chain(pyramid: Pyramid, places: Sequence[tuple[float, float, float]], added: Sequence[float] = ()) -> ParseTree:
    """The whole image, then glimpses of a scale around a centre, all as shares of the root's side."""
    root = root_region(pyramid.bounds, BASE)
    nodes = [look(0, 0, root, base=BASE, score=1.0)]
    for i, (scale, x, y) in enumerate(places, 1):
        side = scale * root.width
        region = Region(root.x + x * root.width - side / 2, root.y + y * root.width - side / 2, side, side)
        value = added[i - 1] if added else None
        nodes.append(replace(look(i, i, region, base=BASE, score=1.0), parents=(i - 1,), contribution=value))
    return with_beliefs(as_tree(pyramid, nodes))


def with_beliefs(tree: ParseTree) -> ParseTree:
    levels = [
        {"depth": i, "label": "lesion" if p > 0.5 else "clear", "probabilities": {"clear": 1 - p, "lesion": p}}
        for i, p in enumerate(SHARES[: len(tree.nodes)])
    ]
    last = levels[-1]["probabilities"]
    prediction = {"label": "lesion", "index": 1, "probabilities": last}
    return replace(tree, record=tree.record | {"levels": levels, "prediction": prediction})


@pytest.fixture(scope="module")
def plain() -> Pyramid:
    return ArrayPyramid(np.full((1000, 1000, 3), (230, 170, 200), np.uint8))


@pytest.fixture(scope="module")
def blocks() -> Pyramid:
    """Smooth enough that Pillow and the reader average alike."""
    small = Image.fromarray(noise(60, 48))
    return ArrayPyramid(np.asarray(small.resize((768, 960), Image.Resampling.BICUBIC)), mpp=0.5)


def test_what_is_a_chain(plain: Pyramid) -> None:
    tree = chain(plain, APART)
    assert is_chain(tree)
    one = replace(tree, nodes=tree.nodes[:1])
    for method in ("mgnet", "topdown"):
        assert is_chain(replace(one, record={**one.record, "model": {"method": method}})) is (method == "mgnet")
    tiles = [look(i, 1, Region(500 * i, 0, 500, 500)) for i in range(2)]
    assert not is_chain(as_tree(plain, tiles))
    assert not is_chain(as_tree(plain, tiles[:1]))
    assert not is_chain(grown_tree(plain, 2))
    broken = replace(tree.nodes[3], parents=(0,))
    assert not is_chain(replace(tree, nodes=(*tree.nodes[:3], broken, *tree.nodes[4:])))


# The overlay.


def words_of(path: Path) -> list[tuple[str, float, float]]:
    """Every word of a PDF's only page, and its middle in pixels of the PNG, from the page's top left."""
    with pypdfium2.PdfDocument(path) as document:
        page, zoom = document[0], PIXELS_AN_INCH / 72
        text, height = page.get_textpage(), page.get_height()
        found = []
        for one in re.finditer(r"\S+", text.get_text_range()):
            boxes = [text.get_charbox(i) for i in range(one.start(), one.end())]
            x = (min(b[0] for b in boxes) + max(b[2] for b in boxes)) / 2
            y = height - (min(b[1] for b in boxes) + max(b[3] for b in boxes)) / 2
            found.append((one[0], x * zoom, y * zoom))
    return found


@pytest.mark.parametrize("places", [NESTED, ALIKE, AT_EDGES], ids=["nested", "alike", "at edges"])
def test_each_number_stands_at_its_outline(
    plain: Pyramid, places: list[tuple[float, float, float]], tmp_path: Path
) -> None:
    """Found in the PDF by PDFium, and in the PNG by colour."""
    tree = chain(plain, places)
    save_overlay(tree, plain, tmp_path / "a.pdf")
    picture = np.asarray(draw_overlay(tree, plain)).astype(int)
    # The image fills 1000 x 1000 px below title and margin.
    is_image = (np.abs(picture - (230, 170, 200)).max(2) < 3).any(0)
    left, top = int(np.flatnonzero(is_image)[0]), 82
    numbers = [word for word in words_of(tmp_path / "a.pdf") if word[1] < left + 1000 and word[2] > top]
    assert sorted(text for text, _, _ in numbers) == ["1", "2", "3", "4", "5"]
    for text, x, y in numbers:
        region = tree.nodes[int(text) - 1].region
        x, y = x - left, y - top
        outside = max(region.x - x, x - region.right, region.y - y, y - region.bottom)
        assert abs(outside) < 28, f"{text} is {outside:.0f} px from its outline"
        assert 0 < x < 1000
        assert 0 < y < 1000
        # A dark or gray badge around the number.
        around = picture[int(y + top) - 7 : int(y + top) + 8, int(x + left) - 7 : int(x + left) + 8]
        assert (np.abs(around - (230, 170, 200)).max(2) > 20).all()
    for one, other in combinations(numbers, 2):
        assert max(abs(one[1] - other[1]), abs(one[2] - other[2])) > 20, "a number hides another"


def test_outlines_lie_on_their_regions_also_where_they_are_alike(plain: Pyramid) -> None:
    picture = np.asarray(draw_overlay(chain(plain, ALIKE), plain)).astype(int)[82:1082, 20:1020]
    dark = (np.abs(picture - DARK).max(2) < 12).astype(int)
    # Across the left edge, below the numbers: four dark lines, one beside the other, from the region's border inwards.
    edge = dark[400, 240:300]
    starts = np.flatnonzero(np.diff(np.concatenate([[0], edge])) == 1) + 240
    assert len(starts) == 4
    assert starts[0] == pytest.approx(250, abs=2)
    assert dark[400, 300:500].sum() == 0


def test_small_ones_choose_first_and_none_hides_another() -> None:
    rng = np.random.default_rng(0)
    canvas = 0, 0, 999, 799
    for _ in range(20):
        corners = rng.integers(0, 500, (6, 2))
        sides = rng.integers(30, 300, 6)
        outlines = [(int(x), int(y), int(x + s), int(y + s)) for (x, y), s in zip(corners, sides, strict=True)]
        outlines[0] = canvas
        placed = place_badges(outlines, [(26, 22)] * 6, canvas)
        for outline, box in zip(outlines, placed, strict=True):
            assert box[2] - box[0] + 1 == 26
            assert box[3] - box[1] + 1 == 22
            assert min(box) >= 0
            assert box[2] <= 999
            assert box[3] <= 799
            beside = max(outline[0] - box[2], box[0] - outline[2], outline[1] - box[3], box[1] - outline[3])
            within = min(box[0] - outline[0], outline[2] - box[2], box[1] - outline[1], outline[3] - box[3])
            assert beside == 1 or (beside <= 0 and within == 0), "it does not touch its outline"
        for one, other in combinations(placed, 2):
            assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def test_colour_is_what_each_glimpse_added(plain: Pyramid) -> None:
    def count(tree: ParseTree, ink: tuple[int, int, int], **options: str) -> int:
        image = np.asarray(draw_overlay(tree, plain, colour=options.get("colour")))[82:1082, 20:1020].astype(int)
        return int((np.abs(image - ink).max(2) < 4).sum())

    added, unknown = chain(plain, APART, [2.0, -2.0, 0.0, 0.0]), chain(plain, APART)
    assert count(added, BLUE) > 1000
    assert count(added, VERMILION) > 700
    assert count(added, DARK) < 200
    for tree, options in ((unknown, {}), (added, {"colour": "score"})):
        assert count(tree, BLUE, **options) == count(tree, VERMILION, **options) == 0
        assert count(tree, DARK, **options) > 3000
    with pytest.raises(ConfigError, match="no contributions"):
        draw_overlay(unknown, plain, colour="contribution")


def test_the_legend_says_what_was_predicted_after_each(plain: Pyramid, tmp_path: Path) -> None:
    save_overlay(chain(plain, APART), plain, tmp_path / "a.pdf")
    legend = [(text, y) for text, x, y in words_of(tmp_path / "a.pdf") if x > 1040]
    rows = [
        [text for text, y in legend if abs(y - row) < 12] for row in sorted(y for text, y in legend if text[0] == "x")
    ]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0] == ["1", "x31.2", "clear", "0.80"]
    assert rows[4] == ["5", "x6.25", "lesion", "0.97"]


# The strip.


def panel(picture: np.ndarray, place: int) -> np.ndarray:
    """The pixels of a panel: five a row, of 256 px, under 162 px of words and over 80 px of them."""
    row, column = divmod(place, 5)
    top, left = 162 + row * 394, 20 + column * 278
    return picture[top : top + 256, left : left + 256].astype(int)


def test_panels_are_what_pillow_reads_there(blocks: Pyramid) -> None:
    places = [(0.5, 0.4, 0.4), (0.2, 0.6, 0.7), (0.3, 0.2, 0.5), (0.2, 0.5, 0.5), (0.4, 0.75, 0.75)]
    tree = chain(blocks, places)
    picture = np.asarray(draw_strip(tree, blocks))
    pixels = blocks.read(blocks.bounds, (768, 960)).pixels
    beside = Image.new("RGB", (960, 960), blocks.background)
    beside.paste(Image.fromarray(pixels), (96, 0))
    for place, node in enumerate(tree.nodes):
        r = node.region
        box = (r.x + 96, r.y, r.right + 96, r.bottom)
        seen = beside.resize((BASE, BASE), Image.Resampling.BOX, box)
        expected = np.asarray(seen.resize((256, 256), Image.Resampling.NEAREST)).astype(int)
        found = panel(picture, place)
        assert np.abs(found - expected).max() <= 1
        # Of another place it is something else.
        assert np.abs(found - panel(picture, (place + 1) % 6)).mean() > 15


def test_the_strip_in_words(blocks: Pyramid, tmp_path: Path) -> None:
    save_strip(chain(blocks, APART, [0.31, -0.2, 0.0, 1.5]), blocks, tmp_path / "a.pdf")
    words = words_of(tmp_path / "a.pdf")
    for i, (size, belief) in enumerate(
        (
            ("480", "clear 0.80"),
            ("168", "clear 0.60"),
            ("96", "lesion 0.55"),
            ("120", "lesion 0.90"),
            ("96", "lesion 0.97"),
        )
    ):
        left = 20 + i * 278
        own = [(text, y) for text, x, y in words if left - 5 < x < left + 262 and y > 100]
        over, under = (" ".join(text for text, y in own if (y < 162) == above) for above in (True, False))
        assert over.startswith(f"{i + 1} {size} x {size} um x")
        assert over.endswith("um a pixel")
        assert under.startswith(belief)
        assert under.endswith(("", "+0.31", "-0.2", "+0", "+1.5")[i])
    assert (
        np.asarray(draw_strip(chain(ArrayPyramid(noise(90, 90)), APART[:1]), ArrayPyramid(noise(90, 90)))).shape[0]
        > 400
    )


def test_of_a_tree_the_strip_shows_the_looks_that_matter_most(blocks: Pyramid, tmp_path: Path) -> None:
    tree = with_beliefs(with_contributions(grown_tree(blocks, 3)))
    assert len(tree.nodes) > 20
    for colour in ("score", "contribution"):
        save_strip(tree, blocks, tmp_path / "a.pdf", colour=colour)
        text = " ".join(word for word, _, _ in words_of(tmp_path / "a.pdf"))
        shown = [int(number) for number in re.findall(r"look (\d+), depth", text)]
        ranked = sorted(tree.nodes[1:], key=lambda node: -abs(getattr(node, colour)))
        assert shown == [0, *(node.id for node in ranked[:9])]
        assert f"the 10 of {len(tree.nodes)} looks that matter most by {colour}" in text


def test_a_strip_of_odd_trees(plain: Pyramid, tmp_path: Path) -> None:
    """A whole slide as one patch, more glimpses than are shown, glimpses beside the image, and no beliefs."""
    whole = Node(0, (), 0, 0, plain.bounds, 1.0, 1.0, None, ())
    assert (panel(np.asarray(draw_strip(as_tree(plain, [whole]), plain)), 0) == (230, 170, 200)).all()
    many = chain(plain, [(0.2, 0.5, 0.5)] * 69)
    assert draw_overlay(many, plain).height < 2000
    assert draw_strip(many, plain).height == draw_strip(replace(many, nodes=many.nodes[:50]), plain).height
    thin = ArrayPyramid(np.full((1000, 10, 3), 90, np.uint8))
    tree = chain(thin, [(0.2, 0.1, 0.1), (0.2, 0.5, 0.5)])
    picture = np.asarray(draw_strip(tree, thin))
    assert (panel(picture, 1) == thin.background[0]).all()
    assert draw_overlay(tree, thin).width > 300
    save_strip(tree, thin, tmp_path / "a.pdf")
    text = " ".join(word for word, _, _ in words_of(tmp_path / "a.pdf"))
    assert text.count("beside the image") == 1
    assert re.search(r"2 200 x 200 px beside the image", text)
    with pytest.raises(ConfigError, match="but the tree is of an image of"):
        draw_strip(tree, plain)


def test_what_contributed_nothing_is_not_shown(blocks: Pyramid) -> None:
    tree = grown_tree(blocks, 2)
    nodes = [replace(node, contribution=-0.5 if node.id in (3, 5) else 0.0 if node.id else None) for node in tree.nodes]
    tree = replace(tree, nodes=tuple(nodes))
    picture = np.asarray(draw_strip(tree, blocks, colour="contribution"))
    assert np.ptp(panel(picture, 1)) > 20
    assert np.ptp(panel(picture, 2)) > 20
    assert picture.shape[:2] == np.asarray(draw_strip(replace(tree, nodes=tree.nodes[:1]), blocks)).shape[:2]


# The page and GeoJSON.


def test_geojson_numbers_the_glimpses(plain: Pyramid) -> None:
    found = to_geojson(chain(plain, APART, [0.31, -0.2, 0.0, 1.5]))
    check(found, GEOJSON_SCHEMA, "a chain")
    properties = [feature["properties"] for feature in found["features"]]
    assert [one["name"] for one in properties] == [f"glimpse {i} of 5" for i in range(1, 6)]
    measured = [{m["name"]: m["value"] for m in one["measurements"]} for one in properties]
    assert [one["glimpse"] for one in measured] == [1, 2, 3, 4, 5]
    assert [one["probability after"] for one in measured] == list(SHARES)
    assert [one.get("contribution") for one in measured] == [None, 0.31, -0.2, 0.0, 1.5]
    assert not any({"score", "depth"} & one.keys() for one in measured)
    assert len({tuple(one["color"]) for one in properties}) == 5


def test_the_page_of_a_chain(plain: Pyramid, tmp_path: Path) -> None:
    tree = chain(plain, APART, [0.31, -0.2, 0.0, 1.5])
    save_page(tree, plain, tmp_path / "a.html")
    with chromium() as browser, opened(browser, tmp_path / "a.html") as page:
        page.wait_for_function("window.Bokeh && [...Bokeh.index.roots].some((one) => one.child_views.length == 2)")
        assert page.locator("#depths h2").inner_text() == "Prediction after each glimpse"
        assert page.locator("#depths tr").nth(5).inner_text().split() == ["5", "lesion", "0.97", "0.03", "0.97"]
        code = """([name, x, y]) => {
            const view = Bokeh.index.roots[0].child_views.find((one) => one.model.name == name);
            const box = view.canvas_view.el.getBoundingClientRect();
            return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)];
        }"""
        # The third bar, and the second glimpse in the picture.
        for place, look_, after in ((("tree", 2.5, 0.3), "3", "0.550"), (("picture", 300, 300), "2", "0.400")):
            page.mouse.click(*page.evaluate(code, list(place)))
            page.wait_for_function(f"document.getElementById('picked-look').textContent == '{look_}'")
            assert page.locator("#picked-after").inner_text() == after
        page.locator("#outlines").click()
        shown = "name => Bokeh.documents[0].get_model_by_name(name).visible"
        assert not any(page.evaluate(shown, name) for name in ("numbers", "regions"))


# The program.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of few weights."""
    torch.manual_seed(0)
    encoder = EncoderSpec("residual", {"base_resolution": BASE, "widths": [4, 8]})
    card = ModelCard(
        "mgnet", encoder, {"glimpses": 4}, ("clear", "lesion"), 3, max_depth=3, selection={"select": "all"}
    )
    built = build_model(card)
    torch.nn.init.normal_(built.get_parameter("locate.weight"), std=3.0)
    path = tmp_path_factory.mktemp("model") / "mgnet.safetensors"
    save_model(path, built, card)
    return path


def test_all_files_from_a_run_and_again_from_the_tree(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"--overlay": "o.png", "--strip": "s.png", "--foveated": "f.png", "--geojson": "g.geojson"}

    def wanted(folder: Path) -> list[str]:
        folder.mkdir()
        return [word for flag, name in names.items() for word in (flag, str(folder / name))]

    image, tree = TISSUE / "val" / "lesion" / "003.tif", tmp_path / "t.json"
    first = ("explain", image, "--model", model, "--out", tree, *wanted(tmp_path / "a"))
    done = run_program(capsys, monkeypatch, *first)
    assert done.code == 0, done.err
    assert re.search(r"by glimpse +1: (clear|lesion), 2: ", done.out)
    found = ParseTree.load(tree)
    assert is_chain(found)
    assert len(found.nodes) == len(found.record["levels"]) == 4
    assert [node.contribution is None for node in found.nodes] == [True, False, False, False]
    assert len(json.loads((tmp_path / "a" / "g.geojson").read_text())["features"]) == 4
    code = (
        "import sys\n"
        f"sys.argv = ['pyrtrav', 'explain', '--tree', {str(tree)!r}, *{wanted(tmp_path / 'b')!r}]\n"
        "from pyrtrav.cli.app import app; app(standalone_mode=False)\n"
        "heavy = {'torch', 'bokeh', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    for name in names.values():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_cannot_be_a_strip_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pyramid(SLIDE) as pyramid:
        tree = chain(pyramid, APART)
    tree.record["input"]["path"] = str(SLIDE)
    tree.save(tmp_path / "t.json")
    target = tmp_path / "a.png"
    for words, message in (
        (["--strip", tmp_path / "a.svg"], "ends in .png or .pdf"),
        (["--strip", target, "--overlay", target], "written to the same file"),
        (["--strip", tmp_path / "none" / "a.png"], "its folder does not exist"),
        (["--strip", target, "--colour", "contribution"], "holds no contributions"),
        (["--geojson", tmp_path / "a.geojson", "--colour", "score"], "--strip"),
    ):
        done = run_program(capsys, monkeypatch, "explain", "--tree", tmp_path / "t.json", *words)
        assert done.code == 2, words
        assert message in " ".join(done.err.replace("│", " ").split()), (words, done.err)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
