"""What stands around the overlay's thumbnail: title, cost, colour bar, legend of depths and scale bar.

All of it lies outside the image, so that it reads the same over white glass and a dark field.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from pyrtrav.explain.colours import ScoreScale, colour_at
from pyrtrav.explain.frame import Frame
from pyrtrav.explain.lettering import (
    FAINT_INK,
    INK,
    PAPER,
    cost_text,
    downsample_text,
    font,
    scale_bar,
    shortened,
    title,
)
from pyrtrav.explain.outline import Line, draw_sample
from pyrtrav.tree import ParseTree


@dataclass(frozen=True, slots=True)
class _Sizes:
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


def compose(
    canvas: Image.Image, tree: ParseTree, frame: Frame, lines: dict[int, Line], scale: ScoreScale | None
) -> Image.Image:
    """Return the finished picture; without a scale (nothing but the glance) there is no colour bar."""
    sizes = _Sizes(max(0.8, max(canvas.size) / 1200))
    bar = 0 if scale is None else sizes.bar + sizes(64)
    panel = bar + sizes.row * (len(lines) + 1)
    footer = sizes(56) if tree.mpp else sizes.margin
    size = (
        canvas.width + 3 * sizes.margin + sizes.panel,
        sizes.header + max(canvas.height, panel) + footer,
    )
    picture = Image.new("RGB", size, PAPER)
    picture.paste(canvas, (sizes.margin, sizes.header))
    draw = ImageDraw.Draw(picture)
    _write_header(draw, tree, sizes, size[0] - 2 * sizes.margin)
    x = canvas.width + 2 * sizes.margin
    if scale is not None:
        _draw_colour_bar(draw, scale, x, sizes)
    _draw_legend(draw, lines, x, sizes.header + bar, sizes)
    if tree.mpp:
        _draw_scale_bar(draw, frame, tree.mpp, sizes, sizes.header + canvas.height)
    return picture


def _write_header(draw: ImageDraw.ImageDraw, tree: ParseTree, sizes: _Sizes, room: int) -> None:
    large, small = font(sizes(28)), font(sizes(18))
    draw.text((sizes.margin, sizes(12)), title(tree, large, room), INK, large)
    draw.text((sizes.margin, sizes(48)), shortened(cost_text(tree), small, room), FAINT_INK, small)


def _draw_colour_bar(draw: ImageDraw.ImageDraw, scale: ScoreScale, x: int, sizes: _Sizes) -> None:
    face = font(sizes(17))
    draw.text((x, sizes.header), "score", INK, face, anchor="lt")
    top, right = sizes.header + sizes(30), x + sizes(26)
    bottom = top + sizes.bar
    for y in range(top, bottom):
        draw.line((x, y, right, y), colour_at(1 - (y - top) / (sizes.bar - 1)))
    draw.rectangle((x, top, right, bottom - 1), outline=FAINT_INK)
    for position, text in scale.ticks():
        y = round(bottom - 1 - position * (sizes.bar - 1))
        draw.line((right, y, right + sizes(6), y), FAINT_INK)
        draw.text((right + sizes(11), y), text, INK, face, anchor="lm")


def _draw_legend(draw: ImageDraw.ImageDraw, lines: dict[int, Line], x: int, y: int, sizes: _Sizes) -> None:
    """One row a depth: its line, its downsample, and how many fixations it has."""
    face = font(sizes(17))
    columns = x + sizes(44), x + sizes(70), x + sizes.panel
    draw.text((x, y), "depth", INK, face, anchor="lt")
    draw.text((columns[2], y), "fixations", INK, face, anchor="rt")
    for row, (depth, line) in enumerate(lines.items(), 1):
        middle = y + row * sizes.row + sizes(10)
        draw_sample(draw, (x, middle - sizes(9), x + sizes(28), middle + sizes(9)), line)
        draw.text((columns[0], middle), f"{depth}", INK, face, anchor="lm")
        downsample = shortened(downsample_text(line.nodes), face, columns[2] - columns[1] - sizes(54))
        draw.text((columns[1], middle), downsample, FAINT_INK, face, anchor="lm")
        draw.text((columns[2], middle), f"{len(line.nodes):,}", INK, face, anchor="rm")


def _draw_scale_bar(draw: ImageDraw.ImageDraw, frame: Frame, mpp: float, sizes: _Sizes, y: int) -> None:
    """A bar of round length under the image, about a quarter of its long side."""
    length, text = scale_bar(max(frame.bounds.width, frame.bounds.height) / 4, mpp)
    x, face = sizes.margin, font(sizes(17))
    right = x + round(length / frame.downsample)
    top = y + sizes(20)
    draw.rectangle((x, top, right - 1, top + sizes(5)), fill=INK)
    draw.text((right + sizes(10), top + sizes(3)), text, INK, face, anchor="lm")
