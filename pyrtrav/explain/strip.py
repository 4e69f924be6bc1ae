"""The strip: what looks saw, pixel for pixel, side by side, with the size of each and what it led to.

Of a chain it shows every glimpse in its order, and under each the prediction after it. Of another tree it shows the
glance and the looks that matter most by the figure that is shown; their names are those of page and GeoJSON.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from PIL import Image

from pyrtrav.explain.badges import badge, badge_size
from pyrtrav.explain.chain import MOST_NUMBERED, is_chain, number_of
from pyrtrav.explain.colours import Colour, Scale
from pyrtrav.explain.drawing import Box, Drawing, Rectangle, Text, paint
from pyrtrav.explain.frame import SQUARES_FROM, check_drawable, picture_of
from pyrtrav.explain.glimpses import belief_text, colour_of
from pyrtrav.explain.lettering import (
    FAINT_INK,
    INK,
    PAPER,
    cost_text,
    factor_text,
    font,
    resolution_text,
    shortened,
    size_text,
    title,
)
from pyrtrav.explain.outline import Figure, colour_for, figure_of
from pyrtrav.explain.output import check_picture, is_pdf, save_png
from pyrtrav.explain.overlay import scale_for
from pyrtrav.explain.vector import SHARPNESS, save_pdf
from pyrtrav.geometry import covers
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import Node, ParseTree

SIDE = 256
"""Longest side of a panel's picture, in picture pixels."""

COLUMNS = 5
"""Panels a row, at most."""

MOST_LOOKS = 10
"""Of a tree that is no chain."""

_LEAST_COLUMNS = 3
"""The title and the line under it have room of this many panels."""

_MARGIN, _GAP, _FRAME = 20, 22, 3
_HEADER, _ABOVE, _BELOW = 104, 58, 58
"""Heights of the strip's title, and of the words over and under a picture."""

_LARGE, _SMALL, _FAINT = 28, 19, 16
"""Sizes of letters."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A look on the strip."""

    node: Node
    colour: Colour
    corner: tuple[int, int]
    """Left and top of its square, in picture pixels."""
    box: Box
    """Of its pixels, in the middle of that."""


def draw_strip(tree: ParseTree, pyramid: Pyramid, *, colour: str | None = None) -> Image.Image:
    """Return what the looks saw, each at the resolution at which it was seen, enlarged.

    Args:
        tree: what was looked at.
        pyramid: the image that the tree is of; what is shown is read again, and nothing else.
        colour: the figure that is shown as colour and, but of a chain, orders the looks: ``score`` or
            ``contribution``; by default what tells more.

    Raises:
        ConfigError: the tree is of another image or has no such figure.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    panels, drawing = _plan(tree, pyramid, colour)
    return paint(drawing, _pixels(panels, pyramid, drawing.size, 1))


def save_strip(tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, colour: str | None = None) -> None:
    """Write ``draw_strip`` as a PNG, or with words as vectors as a PDF, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.png`` nor ``.pdf``, or its folder cannot be written to.
    """
    check_picture(path)
    name = f"{tree.record['image']}: {tree.label}"
    if is_pdf(path):
        panels, drawing = _plan(tree, pyramid, colour)
        save_pdf(drawing, _pixels(panels, pyramid, drawing.size, SHARPNESS), path, name)
    else:
        save_png(draw_strip(tree, pyramid, colour=colour), path, name)


def _plan(tree: ParseTree, pyramid: Pyramid, colour: str | None) -> tuple[list[Panel], Drawing]:
    check_drawable(tree, pyramid, SIDE)
    shown = colour_for(tree, colour)
    scale, figure = scale_for(tree, shown), figure_of(shown)
    panels = [
        _panel(node, place, colour_of(node, tree, scale, figure))
        for place, node in enumerate(_chosen(tree, scale, figure))
    ]
    columns = max(_LEAST_COLUMNS, min(COLUMNS, len(panels)))
    rows = -(-len(panels) // COLUMNS)
    size = (
        2 * _MARGIN + columns * (SIDE + _GAP) - _GAP,
        _HEADER + rows * (_ABOVE + SIDE + _BELOW + _GAP) + _MARGIN,
    )
    shapes: list[Rectangle] = []
    texts = _header(tree, len(panels), shown, size[0] - 2 * _MARGIN)
    for panel in panels:
        some, words = _words(tree, panel, shown)
        shapes += some
        texts += words
    return panels, Drawing(size, (0, 0, size[0] - 1, size[1] - 1), (), tuple(shapes), tuple(texts))


def _chosen(tree: ParseTree, scale: Scale | None, figure: Figure) -> list[Node]:
    """The looks that are shown, in their order."""
    if is_chain(tree):
        return list(tree.nodes[:MOST_NUMBERED])
    glances = [node for node in tree.nodes if node.step == 0 and covers(node.region, tree.bounds)]

    def weight(node: Node) -> float:
        value = figure(node)
        return -1.0 if value is None or scale is None else scale.weight(scale.position(value))

    others = [node for node in tree.nodes if node not in glances and weight(node) != 0]
    return (glances + sorted(others, key=lambda node: (-weight(node), node.id)))[:MOST_LOOKS]


def _panel(node: Node, place: int, colour: Colour) -> Panel:
    """The panel at a place in reading order."""
    row, column = divmod(place, COLUMNS)
    corner = _MARGIN + column * (SIDE + _GAP), _HEADER + row * (_ABOVE + SIDE + _BELOW + _GAP) + _ABOVE
    scale = SIDE / max(node.region.width, node.region.height)
    width, height = (max(1, round(side * scale)) for side in (node.region.width, node.region.height))
    left, top = corner[0] + (SIDE - width) // 2, corner[1] + (SIDE - height) // 2
    return Panel(node, colour, corner, (left, top, left + width - 1, top + height - 1))


def _pixels(panels: list[Panel], pyramid: Pyramid, size: tuple[int, int], sharpness: int) -> Image.Image:
    """The strip without lines and words, ``sharpness`` times as large."""
    canvas = Image.new("RGB", (size[0] * sharpness, size[1] * sharpness), PAPER)
    for panel in panels:
        left, top, right, bottom = (edge * sharpness for edge in (*panel.box[:2], panel.box[2] + 1, panel.box[3] + 1))
        canvas.paste(_seen(panel.node, pyramid, (right - left, bottom - top)), (left, top))
    return canvas


def _seen(node: Node, pyramid: Pyramid, size: tuple[int, int]) -> Image.Image:
    """What a look saw, enlarged; of one that saw more pixels than there is room for, as many as there is."""
    region = node.region
    columns, rows = (max(1, round(side / node.downsample)) for side in (region.width, region.height))
    picture = picture_of(pyramid.read(region, (min(columns, size[0]), min(rows, size[1]))).pixels)
    squares = size[0] >= SQUARES_FROM * columns or size[1] >= SQUARES_FROM * rows
    return picture.resize(size, Image.Resampling.NEAREST if squares else Image.Resampling.BICUBIC)


def _header(tree: ParseTree, count: int, shown: str, room: int) -> list[Text]:
    total = len(tree.nodes)
    what = "what the model saw" + (", and its prediction after each glimpse" if is_chain(tree) else "")
    if count < total:
        which = "" if is_chain(tree) else f" that matter most by {shown}"
        what += f": the {'first ' if is_chain(tree) else ''}{count} of {total:,} looks{which}"
    size = _FAINT + 2
    return [
        Text(_MARGIN, 12, title(tree, font(_LARGE), room), _LARGE, INK),
        Text(_MARGIN, 48, shortened(what, font(size), room), size, FAINT_INK),
        Text(_MARGIN, 70, shortened(cost_text(tree), font(size), room), size, FAINT_INK),
    ]


def _words(tree: ParseTree, panel: Panel, shown: str) -> tuple[list[Rectangle], list[Text]]:
    """What stands around a panel's pixels: a frame, over them what they are, and under them what they led to."""
    node, (left, top) = panel.node, panel.corner
    size, seen = size_text(node.region, tree.mpp), resolution_text(node.downsample, tree.mpp)
    if not node.region.intersects(tree.bounds):
        seen = "beside the image"
    x, y, shapes, texts = left, top - _ABOVE + 2, [_frame(panel)], []
    if is_chain(tree):
        width, height = badge_size(number_of(node), _SMALL)
        filled, number = badge((x, y, x + width - 1, y + height - 1), number_of(node), panel.colour, _SMALL)
        shapes += filled
        texts.append(number)
        x += width + 8
        lines = [(x, y + 2, _SMALL, size), (left, y + 29, _FAINT, seen)]
    else:
        name = f"look {node.id}, depth {node.depth}"
        lines = [(x, y + 2, _SMALL, name), (left, y + 29, _FAINT, f"{size}, {factor_text(node.downsample)}")]
    below = top + SIDE + 8
    first, second = _led_to(tree, node, shown)
    lines += [(left, below, _SMALL, first), (left, below + 25, _FAINT, second)]
    for place, height, letters, text in lines:
        ink = INK if letters == _SMALL else FAINT_INK
        texts.append(Text(place, height, shortened(text, font(letters), left + SIDE - place), letters, ink))
    return shapes, texts


def _frame(panel: Panel) -> Rectangle:
    left, top, right, bottom = panel.box
    return Rectangle((left - _FRAME, top - _FRAME, right + _FRAME, bottom + _FRAME), panel.colour, _FRAME)


def _led_to(tree: ParseTree, node: Node, shown: str) -> tuple[str, str]:
    """What stands under a panel: the prediction after a glimpse of a chain or after the glance, else the figures.

    The scores of a chain are all 1, and so is the glance's.
    """
    added = "" if node.contribution is None else f"contribution {node.contribution:+.2g}"
    if is_chain(tree) or covers(node.region, tree.bounds):
        return belief_text(tree, node, _SMALL, SIDE), added
    score = f"score {node.score:.3g}"
    return (score, added) if shown == "score" else (added, score)
