"""What stands around the overlay's thumbnail: title, cost, colour bar, legend and scale bar.

All of it lies outside the image, so that it reads the same over white glass and a dark field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pyrtrav.explain.colours import Scale
from pyrtrav.explain.drawing import Drawing, Rectangle, Text
from pyrtrav.explain.frame import Frame
from pyrtrav.explain.lettering import (
    FAINT_INK,
    INK,
    cost_text,
    downsample_text,
    font,
    scale_bar,
    shortened,
    title,
)
from pyrtrav.explain.outline import Line, sample
from pyrtrav.tree import ParseTree


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths in picture pixels, in proportion to the picture."""

    zoom: float

    def __call__(self, length: float) -> int:
        return round(length * self.zoom)

    @property
    def margin(self) -> int:
        return self(20)

    @property
    def header(self) -> int:
        return self(82)

    @property
    def panel(self) -> int:
        return self(236)

    @property
    def bar(self) -> int:
        return self(210)

    @property
    def row(self) -> int:
        return self(28)


Shapes = list[Rectangle]
Texts = list[Text]


class Legend(NamedTuple):
    """What the outlines mean."""

    rows: int
    """Under the row of heads."""
    draw: Callable[[int, int, Sizes], tuple[Shapes, Texts]]
    """Given its left and its top."""


NO_LEGEND = Legend(0, lambda x, y, sizes: ([], []))
"""Of pictures without outlines."""


def compose(
    tree: ParseTree,
    frame: Frame,
    legend: Legend,
    layers: tuple[tuple[Rectangle, ...], ...],
    scale: Scale | None,
    words: Sequence[Text] = (),
) -> Drawing:
    """Return the whole picture; without a scale there is no colour bar. ``words`` lie on the canvas, in its pixels."""
    width, height = frame.canvas
    sizes = Sizes(max(0.8, max(width, height) / 1200))
    bar = 0 if scale is None else sizes.bar + sizes(64)
    panel = bar + sizes.row * (legend.rows + 1)
    footer = sizes(56) if tree.mpp else sizes.margin
    size = (width + 3 * sizes.margin + sizes.panel, sizes.header + max(height, panel) + footer)
    place = (sizes.margin, sizes.header, sizes.margin + width - 1, sizes.header + height - 1)
    shapes: Shapes = []
    texts = _header(tree, sizes, size[0] - 2 * sizes.margin)
    texts += [replace(text, x=place[0] + text.x, y=place[1] + text.y) for text in words]
    x = width + 2 * sizes.margin
    parts = [legend.draw(x, sizes.header + bar, sizes)]
    if scale is not None:
        parts.append(_colour_bar(scale, x, sizes))
    if tree.mpp:
        parts.append(bar_of_length(frame, tree.mpp, sizes.margin, sizes.header + height + sizes(20), sizes))
    for some, words in parts:
        shapes += some
        texts += words
    return Drawing(size, place, layers, tuple(shapes), tuple(texts))


def _header(tree: ParseTree, sizes: Sizes, room: int) -> Texts:
    large, small = sizes(28), sizes(18)
    cost = shortened(cost_text(tree), font(small), room)
    return [
        Text(sizes.margin, sizes(12), title(tree, font(large), room), large, INK),
        Text(sizes.margin, sizes(48), cost, small, FAINT_INK),
    ]


def _colour_bar(scale: Scale, x: int, sizes: Sizes) -> tuple[Shapes, Texts]:
    size = sizes(17)
    texts = [Text(x, sizes.header, scale.title, size, INK, "lt")]
    top, right = sizes.header + sizes(30), x + sizes(26)
    bottom = top + sizes.bar
    # Each reaches to the bottom, under the next: as vectors they would else show a seam.
    shapes = [
        Rectangle((x, y, right, bottom - 1), scale.colour(1 - (y - top) / (sizes.bar - 1))) for y in range(top, bottom)
    ]
    shapes.append(Rectangle((x, top, right, bottom - 1), FAINT_INK, 1))
    for position, text in scale.ticks():
        y = round(bottom - 1 - position * (sizes.bar - 1))
        shapes.append(Rectangle((right, y, right + sizes(6), y), FAINT_INK))
        texts.append(Text(right + sizes(11), y, text, size, INK, "lm"))
    return shapes, texts


def depth_legend(lines: dict[int, Line]) -> Legend:
    """Return one row a depth: its line, its downsample, and how many fixations it has."""

    def draw(x: int, y: int, sizes: Sizes) -> tuple[Shapes, Texts]:
        size, shapes = sizes(17), []
        columns = x + sizes(44), x + sizes(70), x + sizes.panel
        texts = [Text(x, y, "depth", size, INK, "lt"), Text(columns[2], y, "fixations", size, INK, "rt")]
        for row, (depth, line) in enumerate(lines.items(), 1):
            middle = y + row * sizes.row + sizes(10)
            shapes.append(sample((x, middle - sizes(9), x + sizes(28), middle + sizes(9)), line))
            texts.append(Text(columns[0], middle, f"{depth}", size, INK, "lm"))
            downsample = shortened(downsample_text(line.nodes), font(size), columns[2] - columns[1] - sizes(54))
            texts.append(Text(columns[1], middle, downsample, size, FAINT_INK, "lm"))
            texts.append(Text(columns[2], middle, f"{len(line.nodes):,}", size, INK, "rm"))
        return shapes, texts

    return Legend(len(lines), draw)


def bar_of_length(frame: Frame, mpp: float, x: int, y: int, sizes: Sizes) -> tuple[Shapes, Texts]:
    """Return a scale bar of round length, about a quarter of the image's long side, with its top left at a place."""
    length, text = scale_bar(max(frame.bounds.width, frame.bounds.height) / 4, mpp)
    right = x + round(length / frame.downsample)
    bar = Rectangle((x, y, right - 1, y + sizes(5)), INK)
    return [bar], [Text(right + sizes(10), y + sizes(3), text, sizes(17), INK, "lm")]
