"""The glimpses of a chain on a canvas: numbered outlines of one width, coarse under fine, and their legend."""

from __future__ import annotations

from dataclasses import dataclass

from pyrtrav.explain.badges import badge, badge_size, place_badges
from pyrtrav.explain.chain import MOST_NUMBERED, belief_after, number_of
from pyrtrav.explain.colours import Colour, Scale, is_light
from pyrtrav.explain.drawing import Box, Rectangle, Text
from pyrtrav.explain.frame import Frame
from pyrtrav.explain.lettering import FAINT_INK, INK, PAPER, factor_text, font, legible, probability_text, shortened
from pyrtrav.explain.outline import NEUTRAL, NEUTRAL_WIDTH, Figure, outline_box, thickness
from pyrtrav.explain.panel import Legend, Shapes, Sizes, Texts
from pyrtrav.geometry import covers
from pyrtrav.tree import Node, ParseTree

_WIDTH = 4
"""Of an outline on a canvas of 1200 px."""

_LETTERS = 22
"""Size of the numbers there."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A glimpse that shows some of the image."""

    node: Node
    colour: Colour
    box: Box
    """Of its outline, in canvas pixels."""
    badge: Box | None
    """Of its number, where it bears one."""


def colour_of(node: Node, tree: ParseTree, scale: Scale | None, figure: Figure) -> Colour:
    """Return a glimpse's colour: gray where it covers the image, dark where the figure says nothing."""
    if covers(node.region, tree.bounds):
        return NEUTRAL
    value = figure(node)
    return INK if scale is None or value is None else scale.colour(scale.position(value))


def place_glimpses(tree: ParseTree, frame: Frame, scale: Scale | None, figure: Figure, zoom: float) -> list[Glimpse]:
    """Return where glimpses and their numbers lie; those beside the image are left out."""
    nodes = [node for node in tree.nodes if node.region.intersects(frame.bounds)]
    boxes = _boxes(nodes, frame, zoom)
    numbers = [number_of(node) for node in nodes if number_of(node) <= MOST_NUMBERED]
    sizes = [badge_size(number, round(_LETTERS * zoom)) for number in numbers]
    badges: list[Box | None] = [*place_badges(boxes[: len(sizes)], sizes, _inside(frame))]
    badges += [None] * (len(nodes) - len(sizes))
    return [
        Glimpse(node, colour_of(node, tree, scale, figure), box, place)
        for node, box, place in zip(nodes, boxes, badges, strict=True)
    ]


def _inside(frame: Frame) -> Box:
    return 0, 0, frame.canvas[0] - 1, frame.canvas[1] - 1


def _boxes(nodes: list[Node], frame: Frame, zoom: float) -> list[Box]:
    """The outlines; one that would hide a larger one, edge upon edge, lies inside of it."""
    width, found = round(_WIDTH * zoom) + 2, dict[int, Box]()
    for node in sorted(nodes, key=lambda node: -node.region.area):
        box = outline_box(node.region, frame, round(zoom))
        inside = 1
        while any(max(abs(a - b) for a, b in zip(box, other, strict=True)) < width for other in found.values()):
            narrower = outline_box(node.region, frame, inside * width + round(zoom))
            if narrower == box:
                break
            box, inside = narrower, inside + 1
        found[node.id] = box
    return [found[node.id] for node in nodes]


def glimpse_layers(glimpses: list[Glimpse], zoom: float) -> tuple[tuple[tuple[Rectangle, ...], ...], list[Text]]:
    """Return outlines and badges as layers, and the numbers, all in canvas pixels."""
    lines: list[Rectangle] = []
    for one in sorted(glimpses, key=lambda one: -one.node.region.area):
        neutral = one.colour == NEUTRAL
        width = NEUTRAL_WIDTH if neutral else thickness(one.box, round(_WIDTH * zoom))
        if not neutral:
            # A wider line under it parts it from tissue as light or as dark as it is.
            left, top, right, bottom = one.box
            edge = (0, 0, 0) if is_light(one.colour) else PAPER
            lines.append(Rectangle((left - 1, top - 1, right + 1, bottom + 1), edge, width + 2, 160))
        lines.append(Rectangle(one.box, one.colour, width))
    drawn = [
        badge(one.badge, number_of(one.node), one.colour, round(_LETTERS * zoom))
        for one in glimpses
        if one.badge is not None
    ]
    return (tuple(lines), tuple(shape for shapes, _ in drawn for shape in shapes)), [text for _, text in drawn]


def glimpse_legend(tree: ParseTree, scale: Scale | None, figure: Figure) -> Legend:
    """Return a row a glimpse: its number, its downsample, and what was predicted after it.

    The root is a square, of which parts may lie beside the image; a glimpse of such a part has no outline.
    """

    listed, more = tree.nodes[:MOST_NUMBERED], len(tree.nodes) - MOST_NUMBERED

    def draw(x: int, y: int, sizes: Sizes) -> tuple[Shapes, Texts]:
        size, right, shapes = sizes(17), x + sizes.panel, []
        texts = [Text(x, y, "glimpse", size, INK, "lt"), Text(right, y, "prediction after", size, INK, "rt")]
        for row, node in enumerate(listed, 1):
            middle = y + row * sizes.row + sizes(10)
            width, height = badge_size(number_of(node), size)
            box = x, middle - height // 2, x + width - 1, middle - height // 2 + height - 1
            filled, number = badge(box, number_of(node), colour_of(node, tree, scale, figure), size)
            shapes += filled
            seen = factor_text(node.downsample) if node.region.intersects(tree.bounds) else "beside"
            texts += [number, Text(x + sizes(40), middle, seen, size, FAINT_INK, "lm")]
            room = sizes.panel - sizes(50) - font(size).getlength(seen)
            texts.append(Text(right, middle, belief_text(tree, node, size, room), size, INK, "rm"))
        if more > 0:
            texts.append(Text(x, y + (len(listed) + 1) * sizes.row, f"and {more:,} more", size, FAINT_INK, "lt"))
        return shapes, texts

    return Legend(len(listed) + (more > 0), draw)


def belief_text(tree: ParseTree, node: Node, size: int, room: float) -> str:
    """Return ``lesion 0.97``, what was predicted after a glimpse, within ``room``; empty where nobody knows."""
    belief = belief_after(tree, node)
    if belief is None:
        return ""
    probability = f" {probability_text(belief[1])}"
    return shortened(legible(belief[0]), font(size), room - font(size).getlength(probability)) + probability
