"""The overlay as PDF and the colours of contributions: the same picture, in vectors, for every eye."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain import draw_foveated, draw_overlay, save_foveated, save_overlay
from pyrtrav.explain.colours import ContributionScale, ScoreScale
from pyrtrav.explain.vector import PIXELS_AN_INCH
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tree import ParseTree
from tests.samples import SLIDE
from tests.trees import as_tree, grown_tree, look, noise, with_contributions

PATH, IMAGE, TEXT = 2, 3, 1
"""Kinds of objects on a PDF's page, as PDFium numbers them."""


@pytest.fixture(scope="module")
def slide() -> Iterator[Pyramid]:
    with open_pyramid(SLIDE) as pyramid:
        yield pyramid


@pytest.fixture(scope="module")
def tree(slide: Pyramid) -> ParseTree:
    return with_contributions(grown_tree(slide, 3, most=60))


@pytest.fixture(scope="module")
def pdf(tree: ParseTree, slide: Pyramid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pdf") / "overlay.pdf"
    save_overlay(tree, slide, path)
    return path


def drawn(path: Path) -> NDArray[np.int64]:
    """The page as PDFium draws it, at the pixels of the PNG."""
    with pypdfium2.PdfDocument(path) as document:
        return np.asarray(document[0].render(scale=PIXELS_AN_INCH / 72).to_pil().convert("RGB")).astype(int)


def test_it_is_the_png(pdf: Path, tree: ParseTree, slide: Pyramid) -> None:
    """Drawn by an independent program: the same size, and the same everywhere but for smooth edges."""
    expected = np.asarray(draw_overlay(tree, slide)).astype(int)
    found = drawn(pdf)
    assert np.abs(np.subtract(found.shape, expected.shape)).max() <= 1
    height, width = np.minimum(found.shape, expected.shape)[:2]
    difference = np.abs(found[:height, :width] - expected[:height, :width]).max(2)
    assert (difference > 60).mean() < 0.02
    # Shifted by three pixels it would not be.
    shifted = np.abs(found[:height, 3:width] - expected[:height, : width - 3]).max(2)
    assert (shifted > 60).mean() > 2 * (difference > 60).mean()


def test_lines_words_and_colour_bar_are_vectors(pdf: Path, tree: ParseTree) -> None:
    with pypdfium2.PdfDocument(pdf) as document:
        page = document[0]
        kinds = Counter(one.type for one in page.get_objects(max_depth=5))
        words = page.get_textpage().get_text_bounded()
        (picture,) = [one for one in page.get_objects(max_depth=5) if one.type == IMAGE]
        pixels = picture.get_px_size()
    assert kinds[IMAGE] == 1
    assert kinds[PATH] > len(tree.nodes) + 200
    for expected in ("slide.svs: lesion 0.97", "60 fixations", "score", "0.8", "100 um", "depth"):
        assert expected in words
    assert max(pixels) == 2400  # 300 an inch


def test_the_bytes_are_a_function_of_the_tree(pdf: Path, tree: ParseTree, slide: Pyramid, tmp_path: Path) -> None:
    """Of another process, at another time, in another folder."""
    tree.save(tmp_path / "tree.json")
    code = (
        "import sys; from pyrtrav.explain import save_overlay; from pyrtrav import open_pyramid, ParseTree\n"
        f"save_overlay(ParseTree.load({str(tmp_path / 'tree.json')!r}), open_pyramid({str(SLIDE)!r}), sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "again.pdf"], check=True)
    assert (tmp_path / "again.pdf").read_bytes() == pdf.read_bytes()
    assert b"CreationDate" not in pdf.read_bytes()


def test_hostile_names_are_words(tree: ParseTree, slide: Pyramid, tmp_path: Path) -> None:
    """Dollar signs are no formulas, and what is no text is shown as a question mark."""
    odd = replace(tree, record=tree.record | {"image": "$\\frac{a}{$ (x) \udce4.svs"})
    save_overlay(odd, slide, tmp_path / "a.pdf", width=300)
    with pypdfium2.PdfDocument(tmp_path / "a.pdf") as document:
        assert "$\\frac{a}{$" in document[0].get_textpage().get_text_bounded()


def test_the_foveated_picture_too(tree: ParseTree, slide: Pyramid, tmp_path: Path) -> None:
    save_foveated(tree, slide, tmp_path / "f.pdf", width=800)
    expected = np.asarray(draw_foveated(tree, slide, width=800)).astype(int)
    found = drawn(tmp_path / "f.pdf")
    height, width = np.minimum(found.shape, expected.shape)[:2]
    difference = np.abs(found[:height, :width] - expected[:height, :width]).max(2)
    assert (difference > 60).mean() < 0.02
    with pypdfium2.PdfDocument(tmp_path / "f.pdf") as document:
        words = document[0].get_textpage().get_text_bounded()
    assert "resolution as seen by the model: x128 .. x16" in words
    assert "100 um" in words


def test_any_shape(tmp_path: Path) -> None:
    for width, height in ((1, 3000), (1, 1), (500, 300)):
        pyramid = ArrayPyramid(noise(height, width))
        save_overlay(grown_tree(pyramid, 2), pyramid, tmp_path / "a.pdf")
        assert min(drawn(tmp_path / "a.pdf").shape[:2]) >= 300


def test_nothing_is_written_on_failure(tree: ParseTree, slide: Pyramid, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.pdf"):
        save_overlay(tree, slide, tmp_path / "a.svg")
    with pytest.raises(ConfigError, match="no contributions; colour it by score"):
        save_overlay(grown_tree(slide, 2), slide, tmp_path / "a.pdf", colour="contribution")
    assert list(tmp_path.iterdir()) == []


# Contributions as colour.

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
_BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def lightness_and_colour(colour: tuple[int, int, int], eye: str | None) -> NDArray[np.float64]:
    """CIELAB of an sRGB colour as an eye sees it."""
    linear = np.array(colour) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    if eye is not None:
        linear = np.clip(np.array(_BLIND[eye]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(to_xyz) @ linear / (0.9505, 1.0, 1.089)
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("eye", [None, "protan", "deutan", "tritan"])
def test_every_eye_tells_for_from_against(eye: str | None) -> None:
    """Equal contributions of unlike sign differ clearly, and each arm grows away from the middle."""
    scale = ContributionScale.over(1.0)

    def seen(value: float) -> NDArray[np.float64]:
        return lightness_and_colour(scale.colour(scale.position(value)), eye)

    for value in (0.25, 0.5, 0.75, 1.0):
        assert np.linalg.norm(seen(value) - seen(-value)) > 12 + 20 * value
    for sign in (1, -1):
        away = [np.linalg.norm(seen(sign * step / 10) - seen(0)) for step in range(11)]
        assert all(a < b + 1 for a, b in pairwise(away))
        assert away[-1] > 40


def test_zero_lies_in_the_middle() -> None:
    scale = ContributionScale.over(-0.7)
    assert scale.limit == pytest.approx(0.8)
    assert [scale.position(value) for value in (-0.8, 0, 0.8, -5, 5)] == [0, 0.5, 1, 0, 1]
    assert len(set(scale.colour(0.5))) == 1  # gray
    assert scale.weight(scale.position(0)) == 0
    assert scale.weight(scale.position(-0.8)) == scale.weight(scale.position(0.8)) == 1
    ticks = scale.ticks()
    assert [text for _, text in ticks] == ["-0.8", "-0.6", "-0.4", "-0.2", "0", "+0.2", "+0.4", "+0.6", "+0.8"]
    assert all(scale.position(float(text)) == pytest.approx(place) for place, text in ticks)


def test_the_overlay_shows_the_figure_that_is_asked_for() -> None:
    """A look with a high score that speaks against the class: yellow or vermilion; the one without figure is gray."""
    pyramid = ArrayPyramid(np.full((400, 400, 3), 255, np.uint8))
    from pyrtrav.geometry import Region

    nodes = [
        look(0, 0, Region(0, 0, 400, 400), score=1.0),
        replace(look(1, 1, Region(0, 0, 180, 180), score=1.0), contribution=-2.0),
        replace(look(2, 1, Region(210, 210, 180, 180), score=1.0), contribution=None),
    ]
    tree = as_tree(pyramid, nodes)
    by_score, by_contribution = (
        np.asarray(draw_overlay(tree, pyramid, colour=colour))[100:] for colour in ("score", "contribution")
    )
    yellow, vermilion = ScoreScale.over(1).colour(1), ContributionScale.over(2).colour(0)

    def count(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
        return int((np.abs(picture[:, :620].astype(int) - colour).max(2) < 3).sum())

    assert count(by_score, yellow) > 1500
    assert count(by_score, vermilion) == 0
    assert count(by_contribution, vermilion) > 700
    assert count(by_contribution, yellow) == 0
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        draw_overlay(tree, pyramid, colour="scores")
    assert Image.fromarray(by_score).size == Image.fromarray(by_contribution).size
