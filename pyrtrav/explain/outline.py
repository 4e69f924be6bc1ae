"""Attended regions as outlines on a canvas. Depth is the line, score or contribution its colour.

1. Coarse is drawn first; within a depth what matters least first, so that the best fixations lie on top.
2. Deeper lines are thinner and stronger, and lie a little further inside their region: half-shifted cells,
   parents and children share edges, which would hide each other.
3. Regions are not filled, and are cut at the image's border.
4. A region that covers the image, such as the glance, has a gray frame and no colour: its score is 1 anyway.
   So has a region of which the figure that is shown is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.explain.chain import is_chain
from pyrtrav.explain.colours import Colour, Scale, is_light
from pyrtrav.explain.drawing import Box, Rectangle
from pyrtrav.explain.frame import Frame
from pyrtrav.geometry import Region, covers
from pyrtrav.tree import Node, ParseTree

LEAST_OUTLINE = 5
"""Canvas pixels; a smaller region is drawn as large as this around its centre."""

# Width in canvas pixels and strength: of the deepest depth's lines, the next coarser one's, ... the others'.
_STYLES = ((2, 1.0), (2, 0.8), (3, 0.6), (4, 0.45))

# Smallest side in canvas pixels and opacity (0..255) of a casing; around smaller regions it would hide the tissue.
_CASINGS = ((48, 110), (24, 60))

NEUTRAL: Colour = (120, 120, 120)
"""Of a region that covers the image."""

NEUTRAL_WIDTH = 2

COLOURS = ("score", "contribution")
"""The figures of a node that can be shown as colour."""

Figure = Callable[[Node], float | None]


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
    """The depth's, in the order of their ids."""


def lines_by_depth(tree: ParseTree, zoom: float) -> dict[int, Line]:
    """Return how each depth that occurs is drawn, coarse to fine; at ``zoom`` 1 the finest line has 2 px."""
    lines = {}
    for rank, depth in enumerate(sorted({node.depth for node in tree.nodes}, reverse=True)):
        nodes = [node for node in tree.nodes if node.depth == depth]
        width, strength = _STYLES[min(rank, len(_STYLES) - 1)]
        lines[depth] = Line(
            width=round(width * zoom),
            inset=round(min(2, 1 + depth // 3) * zoom),
            strength=strength,
            neutral=all(covers(node.region, tree.bounds) for node in nodes),
            nodes=tuple(nodes),
        )
    return dict(sorted(lines.items()))


def check_colour(colour: str | None) -> None:
    """Raise ConfigError where the name is none of COLOURS; None leaves the choice to ``colour_for``."""
    if colour is not None and colour not in COLOURS:
        raise ConfigError(f"no figure of a look is called {colour!r}{nearest_name(colour, COLOURS)}")


def colour_for(tree: ParseTree, colour: str | None) -> str:
    """Return the figure that is shown: by default the score, but of a chain, whose scores are all 1, what each added.

    Raises:
        ConfigError: it is none of COLOURS.
    """
    check_colour(colour)
    added = is_chain(tree) and any(node.contribution is not None for node in tree.nodes)
    return colour or ("contribution" if added else "score")


def figure_of(colour: str) -> Figure:
    """Return the figure of a node that ``colour`` names.

    Raises:
        ConfigError: it is none of COLOURS.
    """
    check_colour(colour)
    return attrgetter(colour)


def outlines(frame: Frame, line: Line, scale: Scale, figure: Figure) -> tuple[Rectangle, ...]:
    """Return the outlines of one depth in canvas pixels, in the order in which they are drawn."""
    # Of one layer: where outlines of one depth meet, the better one is seen, not a mixture of colours.
    gray: list[Rectangle] = []
    found: list[tuple[Box, float]] = []
    for node in line.nodes:
        if not node.region.intersects(frame.bounds):
            continue
        box, value = outline_box(node.region, frame, line.inset), figure(node)
        if value is None or covers(node.region, frame.bounds):
            gray.append(Rectangle(box, NEUTRAL, NEUTRAL_WIDTH))
        else:
            found.append((box, scale.position(value)))
    found.sort(key=lambda one: scale.weight(one[1]))
    casings: list[Rectangle] = []
    lines: list[Rectangle] = []
    for box, position in found:
        # What matters little steps back, but never so far that its colour cannot be read.
        opacity = line.strength * (0.5 + 0.5 * scale.weight(position))
        colour, width = scale.colour(position), thickness(box, line.width)
        casings += _casing(box, width, colour, opacity)
        lines.append(Rectangle(box, colour, width, round(255 * opacity)))
    # All casings first, so that none cuts a neighbour's line.
    return (*gray, *casings, *lines)


def sample(box: Box, line: Line) -> Rectangle:
    """Return the outline of a depth in gray, for a legend."""
    shade = round(255 - 195 * line.strength)
    colour, width = (NEUTRAL, NEUTRAL_WIDTH) if line.neutral else ((shade, shade, shade), line.width)
    return Rectangle(box, colour, width)


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


def thickness(box: Box, width: int) -> int:
    """Return the line width, or less: a line takes at most an eighth of a small region's side."""
    return max(1, min(width, _side(box) // 8))


def _side(box: Box) -> int:
    return min(box[2] - box[0], box[3] - box[1]) + 1


def _casing(box: Box, width: int, colour: Colour, opacity: float) -> list[Rectangle]:
    """An edge on either side of a line, which parts it from tissue as light or as dark as the line is."""
    alpha = round(opacity**2 * next((alpha for side, alpha in _CASINGS if _side(box) >= side), 0))
    if not alpha:
        return []
    edge = (0, 0, 0) if is_light(colour) else (255, 255, 255)
    return [Rectangle(_inset(box, distance), edge, 1, alpha) for distance in (-1, width)]


def _inset(box: Box, distance: int) -> Box:
    return box[0] + distance, box[1] + distance, box[2] - distance, box[3] - distance
