"""The page: in real Chromium without a network, what the pointer touches and picks is the node that lies there."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page

from pyrtrav.errors import ConfigError
from pyrtrav.explain import draw_page, save_page
from pyrtrav.explain.icicle import icicle
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tree import Node, ParseTree
from tests.browser import chromium, opened
from tests.samples import SLIDE
from tests.trees import as_tree, box_where, grown_tree, look, noise, with_contributions

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}$$x$$</script><script>alert(2)</script>.svs"
RED = (230, 0, 0)


def with_levels(tree: ParseTree) -> ParseTree:
    """Beliefs after each depth, as a model has them."""
    names, shares = ("clear", "lesion"), (0.35, 0.62, 0.97)
    levels = [
        {"depth": i, "label": names[p > 0.5], "probabilities": {"clear": 1 - p, "lesion": p}}
        for i, p in enumerate(shares)
    ]
    prediction = {"label": "lesion", "index": 1, "probabilities": {"clear": 0.03, "lesion": 0.97}}
    return replace(tree, record=tree.record | {"levels": levels, "prediction": prediction})


def picture(page: Page) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        return np.asarray(shot.convert("RGB")).astype(int)


def is_red(page: Page) -> NDArray[np.bool_]:
    return np.abs(picture(page) - RED).max(2) < 25


def red(page: Page) -> tuple[int, int]:
    """How many red pixels lie on the left and on the right half: in the picture and in the tree."""
    mask = is_red(page)
    half = mask.shape[1] // 2
    return int(mask[:, :half].sum()), int(mask[:, half:].sum())


def wait_for_plots(page: Page) -> None:
    page.wait_for_function("window.Bokeh && [...Bokeh.index.roots].some((one) => one.child_views.length == 2)")
    page.wait_for_timeout(500)


def spot(page: Page, plot: str, x: float, y: float) -> tuple[float, float]:
    """Where a place of a plot is on the screen; asked of Bokeh itself."""
    code = """([name, x, y]) => {
        const [row] = Bokeh.index.roots;
        const view = row.child_views.find((one) => one.model.name == name);
        const box = view.canvas_view.el.getBoundingClientRect();
        return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)];
    }"""
    left, top = page.evaluate(code, [plot, x, y])
    return left, top


def click(page: Page, place: tuple[float, float]) -> None:
    page.mouse.click(*place)
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)


@pytest.fixture(scope="module")
def slide() -> Iterator[Pyramid]:
    with open_pyramid(SLIDE) as pyramid:
        yield pyramid


@pytest.fixture(scope="module")
def tree(slide: Pyramid) -> ParseTree:
    return with_levels(with_contributions(grown_tree(slide, 4, keep=0.3, most=90)))


def a_place(tree: ParseTree) -> tuple[Node, tuple[float, float]]:
    """A place that several looks show, and the smallest of them."""
    fine = max(tree.nodes, key=lambda one: (one.depth, one.score))
    x, y = fine.region.x + fine.region.width * 0.4, fine.region.y + fine.region.height * 0.6
    point = Region(x - 0.01, y - 0.01, 0.02, 0.02)
    there = [node for node in tree.nodes if node.region.intersects(point)]
    assert len(there) > 3
    return min(there, key=lambda node: (node.region.area, -node.score, node.id)), (x, y)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def main(browser: Browser, tree: ParseTree, slide: Pyramid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a tree of 90 looks, opened once; its tests leave it as they found it, but for what is picked."""
    path = tmp_path_factory.mktemp("page") / "tree.html"
    save_page(tree, slide, path)
    assert path.stat().st_size < 3 << 20
    with opened(browser, path) as page:
        wait_for_plots(page)
        yield page


@pytest.fixture(scope="module")
def mpp(slide: Pyramid) -> float:
    assert slide.mpp is not None
    return slide.mpp


def test_touching_tells_a_looks_figures(main: Page, tree: ParseTree, mpp: float) -> None:
    node, (x, y) = a_place(tree)
    main.mouse.move(*spot(main, "picture", x * mpp, y * mpp))
    told = main.locator(".look").first
    told.wait_for()
    words = told.inner_text()
    assert main.locator(".look").count() == 1
    for expected in (
        f"look {node.id}, depth {node.depth}",
        f"score {node.score:.3g}",
        f"contribution {node.contribution:+.3g}",
        f"{node.region.x:.0f}, {node.region.y:.0f}, {node.region.width:.0f}",
    ):
        assert expected in words
    main.mouse.move(5, 5)


def test_what_is_picked_in_one_plot_is_marked_in_both(main: Page, tree: ParseTree, mpp: float) -> None:
    node, (x, y) = a_place(tree)
    assert red(main) == (0, 0)
    click(main, spot(main, "picture", x * mpp, y * mpp))
    assert min(red(main)) > 30
    assert main.locator("#picked-look").inner_text() == str(node.id)
    assert main.locator("#picked-region").inner_text().startswith(f"{node.region.x:.0f}, {node.region.y:.0f}, ")
    other = next(one for one in tree.nodes if one.depth == 2)
    box = icicle(tree)[other.id]
    click(main, spot(main, "tree", box.level + 0.5, (box.top + box.bottom) / 2))
    assert main.locator("#picked-look").inner_text() == str(other.id)
    # The red outline in the picture is this region's.
    pixels = is_red(main)
    left, top = spot(main, "picture", other.region.x * mpp, other.region.y * mpp)
    right, bottom = spot(main, "picture", other.region.right * mpp, other.region.bottom * mpp)
    found = box_where(pixels[:, : pixels.shape[1] // 2])
    assert found == pytest.approx((left, top, right, bottom), abs=4)


def test_tables_hold_the_record(main: Page) -> None:
    cost = main.locator("#cost").inner_text()
    for expected in ("90", "61 of 41,310", "0.8 MB"):
        assert expected in cost
    rows = re.findall(r"\d\.\d\d", main.locator("#depths").inner_text())
    assert rows == ["0.65", "0.65", "0.35", "0.62", "0.38", "0.62", "0.97", "0.03", "0.97"]


def test_outlines_can_be_taken_away(main: Page) -> None:
    with_lines = picture(main)
    main.locator("#outlines").uncheck()
    main.wait_for_timeout(200)
    without = picture(main)
    main.locator("#outlines").check()
    main.wait_for_timeout(200)
    half = without.shape[1] // 2
    assert (with_lines != without)[:, :half].any(2).sum() > 5000
    assert not (picture(main) != with_lines)[:, :half].any()


def test_zoom_and_pan(main: Page, mpp: float) -> None:
    centre = spot(main, "picture", 4096 * mpp, 4096 * mpp)

    def apart() -> float:
        return spot(main, "picture", 5000 * mpp, 0)[0] - spot(main, "picture", 3000 * mpp, 0)[0]

    before = apart()
    main.mouse.move(*centre)
    for _ in range(3):
        main.mouse.wheel(0, -240)
        main.wait_for_timeout(100)
    assert apart() > 1.3 * before
    there = spot(main, "picture", 4096 * mpp, 4096 * mpp)
    main.mouse.move(*centre)
    main.mouse.down()
    main.mouse.move(centre[0] + 60, centre[1] + 40, steps=4)
    main.mouse.up()
    moved = spot(main, "picture", 4096 * mpp, 4096 * mpp)
    assert np.subtract(moved, there) == pytest.approx((60, 40), abs=2)
    main.locator(".bk-tool-icon-reset").first.click()
    main.wait_for_timeout(200)
    assert apart() == pytest.approx(before, rel=0.01)


def test_the_picture_lies_where_its_pixels_are(browser: Browser, tmp_path: Path) -> None:
    """A blue mark in a gray image that is not at the file's corner, seen at its coordinates on the screen."""
    pixels = np.full((400, 600, 3), 128, np.uint8)
    pixels[100:150, 420:500] = (0, 0, 255)
    pyramid = ArrayPyramid(pixels)
    pyramid.bounds = Region(100, 50, 480, 320)
    nodes = [look(0, 1, Region(100, 50, 350, 300), base=350), look(1, 1, Region(420, 100, 80, 50), base=80)]
    save_page(as_tree(pyramid, nodes), pyramid, tmp_path / "a.html")
    with opened(browser, tmp_path / "a.html") as page:
        wait_for_plots(page)
        shot = picture(page)
        for x, y, blue in ((440, 110, True), (490, 140, True), (410, 125, False), (460, 160, False), (200, 300, False)):
            column, row = (round(place) for place in spot(page, "picture", x, y))
            found = shot[row, column]
            assert (found[2] - found[0] > 150) == blue, (x, y, found)
        # The whole image is shown, though only a part was looked at, and little else.
        left, top = spot(page, "picture", 100, 50)
        right, bottom = spot(page, "picture", 580, 370)
        box = page.locator("#plots").bounding_box()
        assert box is not None
        assert box["x"] < left < right < box["x"] + box["width"] / 2
        assert box["y"] < top < bottom < box["y"] + box["height"]
        assert max((right - left) / (box["width"] / 2), (bottom - top) / box["height"]) > 0.8
        # As wide as high: a square is one.
        left, top = spot(page, "picture", 100, 100)
        right, bottom = spot(page, "picture", 200, 200)
        assert right - left == pytest.approx(bottom - top, rel=0.01)


def test_names_are_words_only(browser: Browser, slide: Pyramid, tree: ParseTree, tmp_path: Path) -> None:
    prediction = {"label": HOSTILE, "index": 0, "probabilities": {HOSTILE: 0.9, "b\udce4": 0.1}}
    levels = [{"depth": 0, "label": HOSTILE, "probabilities": prediction["probabilities"]}]
    change = {"image": HOSTILE + "\udce4", "prediction": prediction, "levels": levels}
    save_page(replace(tree, record=tree.record | change), slide, tmp_path / "a.html", width=300)
    with opened(browser, tmp_path / "a.html") as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script of the name ran: {dialog.message}"))
        wait_for_plots(page)
        assert page.title().startswith(HOSTILE)
        assert page.locator("h1").inner_text() == f"{HOSTILE}?: {HOSTILE} 0.90"
        assert page.locator("img[src='x']").count() == 0
        assert HOSTILE in page.locator("#depths").inner_text()


def test_five_hundred_looks(browser: Browser, slide: Pyramid, tmp_path: Path) -> None:
    tree = with_contributions(grown_tree(slide, 5, keep=0.5, most=500))
    assert len(tree.nodes) == 500
    save_page(tree, slide, tmp_path / "a.html", colour="contribution")
    assert (tmp_path / "a.html").stat().st_size < 4 << 20
    with opened(browser, tmp_path / "a.html") as page:
        wait_for_plots(page)
        page.screenshot(path=tmp_path / "many.png")
        # Both arms of the scale are seen in the tree, each look at least half a pixel high.
        shown = picture(page)[:, 700:]
        assert ((shown[..., 2] - shown[..., 0]) > 60).sum() > 500
        assert ((shown[..., 0] - shown[..., 2]) > 60).sum() > 500
        box = icicle(tree)[-1]
        assert spot(page, "tree", 0, box.bottom)[1] - spot(page, "tree", 0, box.top)[1] > 0.5


def test_a_chain(browser: Browser, tmp_path: Path) -> None:
    """Without cells, mpp or contributions; and of one look no scale."""
    pyramid = ArrayPyramid(noise(300, 500))
    chain = [look(0, 0, Region(0, -100, 500, 500), score=1.0)]
    chain += [replace(look(i, 3, Region(40 * i, 20 * i, 90, 90)), parents=(i - 1,)) for i in range(1, 6)]
    save_page(as_tree(pyramid, chain), pyramid, tmp_path / "a.html", width=300)
    with opened(browser, tmp_path / "a.html") as page:
        wait_for_plots(page)
        click(page, spot(page, "tree", 5.5, 0.5))
        assert page.locator("#picked-look").inner_text() == "6"
        assert page.locator("#picked-contribution").inner_text() == "–"
    assert "ColorBar" not in draw_page(as_tree(pyramid, chain[:1]), pyramid, width=300).partition('id="model"')[2]


def test_the_same_tree_gives_the_same_bytes(tree: ParseTree, slide: Pyramid) -> None:
    assert draw_page(tree, slide, width=300) == draw_page(tree, slide, width=300)


def test_what_cannot_be_drawn_is_told(tree: ParseTree, slide: Pyramid, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        save_page(tree, slide, tmp_path / "a.htlm")
    with pytest.raises(ConfigError, match="no contributions"):
        draw_page(grown_tree(slide, 2), slide, colour="contribution")
    with pytest.raises(ConfigError, match="did you mean 'contribution'"):
        draw_page(tree, slide, colour="contributions")
    code = (
        "import sys; sys.modules['bokeh'] = None; sys.modules['bokeh.resources'] = None\n"
        "from pyrtrav.errors import ConfigError\n"
        "from pyrtrav.explain import draw_page\n"
        "try: draw_page(None, None)\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'pyrtrav[html]'" in done.stdout


# The icicle.


def test_the_icicle_partitions(tree: ParseTree) -> None:
    """Boxes of a level do not overlap; a child stands beside its best parent, within it, one level on."""
    boxes = icicle(tree)
    leaves = sum(not any(cell.node is not None for cell in node.cells) for node in tree.nodes)
    assert boxes[0].level == 0
    assert boxes[0].top == 0
    assert boxes[0].bottom >= leaves
    for level in {box.level for box in boxes}:
        spans = sorted((box.top, box.bottom) for box in boxes if box.level == level)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for node, box in zip(tree.nodes, boxes, strict=True):
        if node.parents:
            best = max(
                (cell.probability * tree.nodes[parent].score, -parent)
                for parent in node.parents
                for cell in tree.nodes[parent].cells
                if cell.node == node.id
            )
            assert best[0] == pytest.approx(node.score)
            above = boxes[-best[1]]
            assert box.level == above.level + 1
            assert above.top <= box.top < box.bottom <= above.bottom


def test_the_icicle_of_a_long_chain() -> None:
    pyramid = ArrayPyramid(noise(30, 50))
    nodes = [replace(look(i, 0, Region(0, 0, 9, 9)), parents=(i - 1,) if i else ()) for i in range(3000)]
    boxes = icicle(as_tree(pyramid, nodes))
    assert [box.level for box in boxes] == list(range(3000))
    assert {(box.top, box.bottom) for box in boxes} == {(0.0, 1.0)}
