"""The pictures: regions land where they were looked at, the finest look wins, and nothing else is read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import ConfigError, CorruptImageError
from pyrtrav.explain import draw_foveated, draw_overlay, frame, lettering, save_foveated, save_overlay, save_strip
from pyrtrav.explain.colours import ScoreScale, colour_at
from pyrtrav.explain.frame import PADDING, frame_of
from pyrtrav.explain.outline import LEAST_OUTLINE, lines_by_depth, outline_box
from pyrtrav.geometry import Region, root_region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tree import TREE_SCHEMA, Node, ParseTree, check
from tests.trees import BASE, as_tree, box_where, grown_tree, look, noise

TILE = 64
BLUE = (40, 90, 200)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiled TIFF of 1024 x 768 px with levels 1, 2 and 4."""
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    pixels = noise(768, 1024)
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 2, 4):
            level = pixels.reshape(768 // step, step, 1024 // step, step, 3).mean((1, 3)).astype(np.uint8)
            kind = {"subfiletype": 1} if step > 1 else {}
            tif.write(level, tile=(TILE, TILE), photometric="rgb", compression="zlib", metadata=None, **kind)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Pyramid:
    Image.new("RGB", (1000, 800), BLUE).save(tmp_path / "plain.png")
    return open_pyramid(tmp_path / "plain.png")


def enlarged(patch: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear interpolation between pixel centres, (width, height): slow and obvious."""
    pixels = patch.astype(np.float64)
    for axis, count in ((0, size[1]), (1, size[0])):
        length = pixels.shape[axis]
        centres = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        first = np.minimum(centres.astype(int), length - 2)
        part = (centres - first).reshape([-1 if i == axis else 1 for i in range(3)])
        pixels = pixels.take(first, axis) * (1 - part) + pixels.take(first + 1, axis) * part
    return pixels


# The overlay.


@pytest.mark.parametrize(
    "region",
    [
        Region(250, 400, 500, 250),
        Region(31.25, 62.5, 62.5, 62.5),
        Region(-300, 200, 500, 500),
        Region(700, 700, 500, 500),
    ],
)
@pytest.mark.parametrize("width", [1000, 700, 4000])
def test_outline_lies_on_its_region(plain: Pyramid, region: Region, width: int) -> None:
    """Found in the finished picture by colour, and mapped back to level-0 pixels."""
    picture = np.asarray(draw_overlay(as_tree(plain, [look(0, 2, region)]), plain, width=width))
    shown = min(width, 1000)
    image = (picture == BLUE).all(2)
    left, top, right, bottom = box_where(image)
    assert right - left == shown
    area = ~image[top:bottom, left:right]
    scale = 1000 / (right - left)
    found = [edge * scale for edge in box_where(area)]
    inside = region.intersection(plain.bounds)
    assert found == pytest.approx([inside.x, inside.y, inside.right, inside.bottom], abs=2.5 * scale)


def test_tissue_stays_visible_under_many_fixations(slide: Path) -> None:
    with open_pyramid(slide) as pyramid:
        tree = grown_tree(pyramid, 4, keep=0.6, most=300)
        assert len(tree.nodes) == 300
        bare = np.asarray(draw_overlay(replace(tree, nodes=tree.nodes[:1]), pyramid))
        drawn = np.asarray(draw_overlay(tree, pyramid))
    # The same place in both: the header has the same height, and the image comes first from the left.
    window = slice(90, 700), slice(30, 1000)
    assert (bare[window] == drawn[window]).all(2).mean() > 0.4


def test_outline_stays_in_reach_and_visible() -> None:
    place = frame_of(Region(100, 50, 4000, 2000), 1000, 300)
    assert outline_box(Region(100, 50, 2000, 1000), place, 2) == (2, 2, 497, 247)
    left, top, right, bottom = outline_box(Region(2000, 1000, 1, 1), place, 2)
    assert right - left + 1 == bottom - top + 1 == LEAST_OUTLINE
    assert (left + right) / 2 == pytest.approx(475, abs=1)


def test_deeper_lines_are_thinner_and_stronger(slide: Path) -> None:
    with open_pyramid(slide) as pyramid:
        lines = lines_by_depth(grown_tree(pyramid, 4), 1.0)
    assert list(lines) == [0, 1, 2, 3, 4]
    widths, strengths = [line.width for line in lines.values()], [line.strength for line in lines.values()]
    assert widths == sorted(widths, reverse=True)
    assert strengths == sorted(strengths)
    assert widths[0] > widths[-1]
    assert strengths[0] < strengths[-1]


def test_small_image_is_enlarged_after_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    pyramid = ArrayPyramid(noise(30, 40))
    sizes = []
    read = pyramid.read
    monkeypatch.setattr(pyramid, "read", lambda region, size: sizes.append(size) or read(region, size))
    picture = draw_overlay(as_tree(pyramid, [look(0, 0, root_region(pyramid.bounds, BASE))]), pyramid)
    assert sizes == [(40, 30)]
    assert picture.width > 600


def test_thumbnail_of_a_gap_between_levels_is_affordable(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "MAX_THUMBNAIL_PIXELS", 1024 * 768 // 2)
    with open_pyramid(slide) as pyramid:
        draw_overlay(grown_tree(pyramid, 1), pyramid, width=1000)
        assert pyramid.cost.tiles_distinct == 8 * 6  # level 1, not level 0 with four times as many


def test_saved_tree_redraws_the_same(slide: Path, tmp_path: Path) -> None:
    with open_pyramid(slide) as pyramid:
        tree = grown_tree(pyramid, 3)
        check(tree.to_dict(), TREE_SCHEMA, "the test's tree")
        tree.save(tmp_path / "tree.json")
        loaded = ParseTree.load(tmp_path / "tree.json")
        for draw in (draw_overlay, draw_foveated):
            assert np.array_equal(np.asarray(draw(tree, pyramid)), np.asarray(draw(loaded, pyramid)))


# The foveated picture.


def test_finest_look_wins_everywhere(slide: Path) -> None:
    """At one canvas pixel a level-0 pixel: the deepest patch where one is, else the glance, enlarged."""
    with open_pyramid(slide) as pyramid:
        root = root_region(pyramid.bounds, BASE)
        fine, finer = Region(256, 0, 512, 512), Region(384, 128, 256, 256)
        # The finest is numbered first, and still wins.
        nodes = [look(0, 2, finer), look(1, 0, root), look(2, 1, fine)]
        shown = np.asarray(draw_foveated(as_tree(pyramid, nodes), pyramid, width=1024))[:768].astype(float)
        expected = enlarged(pyramid.read(root, BASE).pixels, (1024, 1024))[128:896]
        expected[0:512, 256:768] = enlarged(pyramid.read(fine, BASE).pixels, (512, 512))
        expected[128:384, 384:640] = enlarged(pyramid.read(finer, BASE).pixels, (256, 256))
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("width", [1024, 300])
def test_only_attended_tiles_are_decoded(slide: Path, width: int) -> None:
    with open_pyramid(slide) as pyramid, open_pyramid(slide) as other:
        tree = grown_tree(pyramid, 3, keep=0.25, most=12)
        draw_foveated(tree, pyramid, width=width)
        for node in tree.nodes:
            other.read(node.region, BASE)
        assert pyramid.cost.tiles_distinct == other.cost.tiles_distinct
        assert 0 < pyramid.cost.tiles_distinct < pyramid.tiles_total / 2


def test_whole_image_as_one_patch_is_read_in_pieces() -> None:
    """fcn: one node, the whole image at one downsample, far larger than a patch."""
    pixels = noise(1100, 2300)
    pyramid = ArrayPyramid(pixels)
    root = root_region(pyramid.bounds, BASE)
    node = Node(0, (), 0, 0, root, 1.0, 1.0, None, ())
    shown = np.asarray(draw_foveated(as_tree(pyramid, [node]), pyramid, width=2300))[:1100]
    assert np.array_equal(shown, pixels)


def test_places_never_looked_at_are_gray() -> None:
    pyramid = ArrayPyramid(noise(512, 512))
    tree = as_tree(pyramid, [look(0, 1, Region(0, 0, 256, 256))])
    shown = np.asarray(draw_foveated(tree, pyramid, width=512))
    assert (shown[:512, 256:] == PADDING).all()
    assert (shown[256:512] == PADDING).all()
    assert not (shown[:256, :256] == PADDING).all(2).any()


def test_bounds_are_the_picture(slide: Path) -> None:
    """Scanners leave a margin that OpenSlide's bounds cut off."""
    with open_pyramid(slide) as pyramid:
        bounds = Region(128, 64, 512, 512)
        tree = replace(as_tree(pyramid, [look(0, 0, bounds)]), bounds=bounds)
        shown = np.asarray(draw_foveated(tree, pyramid, width=512))[:512]
        assert np.abs(shown - enlarged(pyramid.read(bounds, BASE).pixels, (512, 512))).max() <= 1


# Both, at the edges of what can be drawn.


@pytest.mark.parametrize("draw", [draw_overlay, draw_foveated])
@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1), (1, 1), (3, 2), (40, 3000), (500, 500)])
def test_any_shape_gives_a_picture_of_sensible_size(draw: Any, width: int, height: int) -> None:
    pyramid = ArrayPyramid(np.full((height, width, 3), 128, np.uint8), mpp=0.5)
    picture = draw(grown_tree(pyramid, 2), pyramid)
    assert min(picture.size) >= 300
    assert max(picture.size) < 2000


@pytest.mark.parametrize("draw", [draw_overlay, draw_foveated])
def test_chain_and_single_node(draw: Any, plain: Pyramid) -> None:
    root = root_region(plain.bounds, BASE)
    chain = [look(0, 0, root, score=1.0)]
    for i in range(1, 6):
        side = 500 / 1.5**i
        chain.append(replace(look(i, min(i, 3), Region(200 + 30 * i, 100, side, side)), parents=(i - 1,)))
    one, many = (draw(as_tree(plain, nodes), plain) for nodes in (chain[:1], chain))
    assert one.mode == many.mode == "RGB"
    assert one.tobytes() != many.tobytes()


@pytest.mark.parametrize("draw", [draw_overlay, draw_foveated])
def test_gray_dark_field(draw: Any) -> None:
    """The words stand outside the image, on white; a gray image stays gray."""
    pyramid = ArrayPyramid(np.zeros((400, 600), np.uint8), channels=1)
    picture = np.asarray(draw(as_tree(pyramid, [look(0, 0, root_region(pyramid.bounds, 600))]), pyramid))
    assert (np.ptp(picture.astype(int), axis=2) == 0).all()
    assert (picture[-3:] == 255).all()
    assert (picture == 255).all(2).any()


@pytest.mark.parametrize("draw", [draw_overlay, draw_foveated])
def test_other_image_and_impossible_width_are_refused(draw: Any, plain: Pyramid) -> None:
    tree = as_tree(plain, [look(0, 0, root_region(plain.bounds, BASE))])
    with pytest.raises(ConfigError, match=r"10 x 10 px, but the tree is of an image of 1000 x 800 px \(slide.svs"):
        draw(tree, ArrayPyramid(noise(10, 10)))
    for width in (0, 99, 10**6):
        with pytest.raises(ConfigError, match="px wide"):
            draw(tree, plain, width=width)


# Files.


@pytest.mark.parametrize("save", [save_overlay, save_foveated, save_strip])
def test_saved_whole(save: Any, plain: Pyramid, tmp_path: Path) -> None:
    tree = as_tree(plain, [look(0, 0, root_region(plain.bounds, BASE))], "na\udce4me.svs")
    save(tree, plain, tmp_path / "a.PNG")
    with Image.open(tmp_path / "a.PNG") as image:
        image.load()
        assert image.format == "PNG"
        assert image.info["Title"] == "na?me.svs: lesion"


@pytest.mark.parametrize("save", [save_overlay, save_foveated, save_strip])
def test_saved_not_at_all(save: Any, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.tif"
    data = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as tif:
        for page in tif.pages:
            for offset in page.dataoffsets:
                data[offset : offset + 2] = b"\xff\xff"
    bad.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"old")
    with open_pyramid(bad) as pyramid, pytest.raises(CorruptImageError, match=r"bad\.tif: level"):
        save(grown_tree(pyramid, 1), pyramid, out / "a.png")
    with open_pyramid(slide) as pyramid:
        tree = grown_tree(pyramid, 1)
        monkeypatch.setattr(Image.Image, "save", lambda self, path, **_: path.write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(tree, pyramid, out / "a.png")
        for name in ("a.jpg", "a", "a.png.tif"):
            with pytest.raises(ConfigError, match=r"\.png"):
                save(tree, pyramid, out / name)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("a.png", b"old")]


def test_no_torch_and_no_matplotlib() -> None:
    code = "import sys, pyrtrav.explain; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# Words and colours.


@pytest.mark.parametrize("width", [150, 250, 400, 1000])
def test_title_fits_and_keeps_the_probability(plain: Pyramid, width: int) -> None:
    nodes = [look(0, 0, root_region(plain.bounds, BASE))]
    face = lettering.font(28)
    for name, label in (("slide.svs", "lesion"), ("x" * 300 + ".svs", "lesion"), ("a.svs", "b" * 300)):
        text = lettering.title(as_tree(plain, nodes, name, label=label), face, width)
        assert face.getlength(text) <= width
        assert text.endswith("0.97")
    assert lettering.title(as_tree(plain, nodes), face, 400) == "slide.svs: lesion 0.97"


def test_middle_of_a_long_name_goes() -> None:
    face = lettering.font(20)
    text = lettering.shortened("TCGA-A1-A0SB-01Z-00-DX1.svs", face, 160)
    assert text.startswith("TCGA-")
    assert text.endswith(".svs")
    assert "..." in text
    assert lettering.shortened("anything", face, 0) == "..."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 5 µm.svs", "Grosse 5 um.svs"),
        ("re\u0301sume\u0301.tif", "resume.tif"),
        ("Škoda\u20132.ndpi", "Skoda-2.ndpi"),
        ("切片.svs", "??.svs"),
        ("a\nb\u200e.svs", "a b .svs"),
    ],
)
def test_names_are_spelled_with_what_the_font_has(text: str, shown: str) -> None:
    assert lettering.legible(text) == shown


def test_numbers_read_well(plain: Pyramid) -> None:
    tree = as_tree(plain, [look(0, 0, root_region(plain.bounds, BASE))])
    assert lettering.cost_text(tree) == "1 fixation, 61 of 41,310 tiles, 0.8 MB read"
    cost = tree.record["cost"] | {"fixations": 1234, "bytes_read": None, "truncated": True}
    cut = replace(tree, record=tree.record | {"cost": cost})
    assert lettering.cost_text(cut) == "1,234 fixations (cut short), 61 of 41,310 tiles"
    assert [lettering.probability_text(p) for p in (1, 0.999, 0.97, 0.001, 0)] == [
        *("1.00", ">0.99", "0.97", "<0.01", "0.00")
    ]
    assert [lettering.bytes_text(n) for n in (0, 99, 2500, 812_331, 3 * 10**9)] == [
        *("0 bytes", "99 bytes", "2.5 kB", "0.8 MB", "3.0 GB")
    ]
    assert lettering.factor_text(446.4) == "x446"
    assert lettering.factor_text(3.488) == "x3.49"


@pytest.mark.parametrize(
    ("pixels", "mpp", "length", "words"),
    [
        (25_000, 0.25, 20_000, "5 mm"),
        (2048, 0.5, 2000, "1 mm"),
        (750, 0.5, 400, "200 um"),
        (0.25, 0.5, 0.2, "100 nm"),
        (2500, 1e7, 2000, "20 km"),
    ],
)
def test_scale_bar_is_round(pixels: float, mpp: float, length: float, words: str) -> None:
    assert lettering.scale_bar(pixels, mpp) == (pytest.approx(length), words)


@pytest.mark.parametrize("largest", [0.97, 1.0, 0.31, 0.0042, 1e-9, 0.0, 7.0])
def test_scale_holds_the_largest_score(largest: float) -> None:
    scale = ScoreScale.over(largest)
    assert largest <= scale.limit * (1 + 1e-6)
    assert largest == 0 or scale.limit <= 1.51 * largest
    assert scale.position(0) == 0
    assert scale.position(scale.limit) == 1
    assert [position for position, _ in scale.ticks()][:: len(scale.ticks()) - 1] == [0, 1]


def test_brightness_orders_the_colours() -> None:
    luma = [np.dot((0.299, 0.587, 0.114), colour_at(i / 100)) for i in range(101)]
    assert all(a < b for a, b in pairwise(luma))
    assert colour_at(-1) == colour_at(0)
    assert colour_at(2) == colour_at(1)
