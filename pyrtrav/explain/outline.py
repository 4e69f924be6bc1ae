"""Attended regions as outlines on a canvas. Depth is the line, score its colour.

1. Coarse is drawn first; within a depth the lowest score first, so that the best fixations lie on top.
2. Deeper lines are thinner and stronger, and lie a little further inside their region: half-shifted cells,
   parents and children share edges, which would hide each other.
3. Regions are not filled, and are cut at the image's border.
4. A region that covers the image, such as the glance, has a gray frame and no colour: its score is 1 anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from pyrtrav.explain.colours import Colour, ScoreScale, colour_at, is_light
from pyrtrav.explain.frame import Frame
from pyrtrav.geometry import Region
from pyrtrav.tree import Node, ParseTree

LEAST_OUTLINE = 5
"""Canvas pixels; a smaller region is drawn as large as this around its centre."""

# Width in canvas pixels and strength: of the deepest depth's lines, the next coarser one's, ... the others'.
_STYLES = ((2, 1.0), (2, 0.8), (3, 0.6), (4, 0.45))

# Smallest side in canvas pixels and opacity of a casing; around smaller regions it would hide the tissue.
_CASINGS = ((48, 110), (24, 60))

_NEUTRAL: Colour = (120, 120, 120)
_NEUTRAL_WIDTH = 2

Box = tuple[int, int, int, int]
"""First and last column and row: left, top, right, bottom, in canvas pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """How the regions of a depth are outlined."""

    width: int
    """Canvas pixels."""
    inset: int
    """Canvas pixels between a region's border and its outline."""
    strength: float
    """0..1; times the score's share it is the line's opacity."""
    neutral: bool
    """Every region covers the image."""
    nodes: tuple[Node, ...]
    """The depth's, lowest score first."""


def lines_by_depth(tree: ParseTree, zoom: float) -> dict[int, Line]:
    """Return how each depth that occurs is drawn, coarse to fine; at ``zoom`` 1 the finest line has 2 px."""
    lines = {}
    for rank, depth in enumerate(sorted({node.depth for node in tree.nodes}, reverse=True)):
        nodes = sorted((node for node in tree.nodes if node.depth == depth), key=lambda node: node.score)
        width, strength = _STYLES[min(rank, len(_STYLES) - 1)]
        lines[depth] = Line(
            width=round(width * zoom),
            inset=round(min(2, 1 + depth // 3) * zoom),
            strength=strength,
            neutral=all(covers(node.region, tree.bounds) for node in nodes),
            nodes=tuple(nodes),
        )
    return dict(sorted(lines.items()))


def covers(region: Region, bounds: Region) -> bool:
    """Return whether the whole image lies in the region, but for rounding."""
    shared = region.intersection(bounds)
    return shared.width > bounds.width * (1 - 1e-6) and shared.height > bounds.height * (1 - 1e-6)


def draw_outlines(canvas: Image.Image, frame: Frame, line: Line, scale: ScoreScale) -> None:
    """Draw the outlines of one depth on the canvas, which is RGBA."""
    # A layer of its own: where outlines of one depth meet, the better one is seen, not a mixture of colours.
    layer = Image.new("RGBA", frame.canvas, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    outlines = []
    for node in line.nodes:
        if not node.region.intersects(frame.bounds):
            continue
        box = outline_box(node.region, frame, line.inset)
        if covers(node.region, frame.bounds):
            draw.rectangle(box, outline=(*_NEUTRAL, 255), width=_NEUTRAL_WIDTH)
        else:
            outlines.append((box, scale.position(node.score)))
    # All casings first, so that none cuts a neighbour's line.
    for box, position in outlines:
        _draw_casing(draw, box, line, position)
    for box, position in outlines:
        # A low score steps back, but never so far that its colour cannot be read.
        alpha = round(255 * line.strength * (0.5 + 0.5 * position))
        draw.rectangle(box, outline=(*colour_at(position), alpha), width=_thickness(box, line))
    canvas.alpha_composite(layer)


def draw_sample(draw: ImageDraw.ImageDraw, box: Box, line: Line) -> None:
    """Draw the outline of a depth in gray, for a legend."""
    shade = round(255 - 195 * line.strength)
    colour, width = (_NEUTRAL, _NEUTRAL_WIDTH) if line.neutral else ((shade, shade, shade), line.width)
    draw.rectangle(box, outline=colour, width=width)


def outline_box(region: Region, frame: Frame, inset: int) -> Box:
    """Return where a region's outline lies: inside its borders and the image's, but never too small."""
    place = frame.place(region)
    left, right = _axis(place[0], place[2], frame.box[0], frame.box[2], inset)
    top, bottom = _axis(place[1], place[3], frame.box[1], frame.box[3], inset)
    return left, top, right, bottom


def _axis(start: float, end: float, least: int, most: int, inset: int) -> tuple[int, int]:
    first, last = round(max(start, least)), round(min(end, most)) - 1
    # A small region keeps its size rather than its distance from its neighbours.
    inset = max(0, min(inset, (last - first + 1) // 8))
    first, last = first + inset, last - inset
    if last - first + 1 < LEAST_OUTLINE:
        first = (first + last - LEAST_OUTLINE + 1) // 2
        last = first + LEAST_OUTLINE - 1
    return first, last


def _thickness(box: Box, line: Line) -> int:
    """The depth's line width, or less: a line takes at most an eighth of a small region's side."""
    return max(1, min(line.width, _side(box) // 8))


def _side(box: Box) -> int:
    return min(box[2] - box[0], box[3] - box[1]) + 1


def _draw_casing(draw: ImageDraw.ImageDraw, box: Box, line: Line, position: float) -> None:
    """An edge on either side of a line, which parts it from tissue as light or as dark as the line is."""
    opacity = next((opacity for side, opacity in _CASINGS if _side(box) >= side), 0)
    if opacity:
        edge = (0, 0, 0) if is_light(colour_at(position)) else (255, 255, 255)
        outer = (box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1)
        alpha = round(opacity * line.strength**2)
        draw.rectangle(outer, outline=(*edge, alpha), width=_thickness(box, line) + 2)
