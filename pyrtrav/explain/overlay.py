"""The overlay: the thumbnail with every attended region outlined, and around it what one needs to read it."""

from __future__ import annotations

import os

from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain.chain import is_chain
from pyrtrav.explain.colours import ContributionScale, Scale, ScoreScale
from pyrtrav.explain.drawing import Drawing, paint
from pyrtrav.explain.frame import Frame, check_drawable, draw_thumbnail, frame_of
from pyrtrav.explain.glimpses import glimpse_layers, glimpse_legend, place_glimpses
from pyrtrav.explain.outline import colour_for, figure_of, lines_by_depth, outlines
from pyrtrav.explain.output import check_picture, is_pdf, save_png
from pyrtrav.explain.panel import compose, depth_legend
from pyrtrav.explain.vector import SHARPNESS, save_pdf
from pyrtrav.geometry import covers
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import ParseTree

LEAST_SIDE = 300
"""Canvas pixels; a thinner image is padded, so that title and legend have room."""

LEAST_LONG_SIDE = 600
"""Canvas pixels; a smaller image is enlarged to it, so that lines and tissue can be told apart."""


def draw_overlay(tree: ParseTree, pyramid: Pyramid, *, width: int = 1200, colour: str | None = None) -> Image.Image:
    """Return the thumbnail with the attended regions, a title, a colour bar and a legend.

    Args:
        tree: what was looked at.
        pyramid: the image that the tree is of; its thumbnail is read, whatever the tree attended.
        width: long side of the thumbnail in picture pixels; a smaller image is shown at its own size, and
            enlarged to 600 px if it is smaller than that.
        colour: the figure that is shown as colour, ``score`` or ``contribution``; by default what tells more.

    Raises:
        ConfigError: the tree is of another image or has no such figure, or the width is impossible.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    drawing, frame = _plan(tree, pyramid, width, colour)
    return paint(drawing, draw_thumbnail(pyramid, frame))


def save_overlay(
    tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, width: int = 1200, colour: str | None = None
) -> None:
    """Write ``draw_overlay`` as a PNG, or the same with lines and words as vectors as a PDF, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.png`` nor ``.pdf``, or its folder cannot be written to.
    """
    check_picture(path)
    title = f"{tree.record['image']}: {tree.label}"
    if is_pdf(path):
        drawing, frame = _plan(tree, pyramid, width, colour)
        save_pdf(drawing, draw_thumbnail(pyramid, frame.sharper(SHARPNESS)), path, title)
    else:
        save_png(draw_overlay(tree, pyramid, width=width, colour=colour), path, title)


def overlay_frame(tree: ParseTree, width: int) -> Frame:
    """Return where the image lies, its long side ``width`` canvas pixels; a small one is enlarged less far."""
    longest = round(max(tree.bounds.width, tree.bounds.height))
    return frame_of(tree.bounds, min(width, max(longest, LEAST_LONG_SIDE)), LEAST_SIDE)


def scale_for(tree: ParseTree, colour: str) -> Scale | None:
    """Return the scale of a figure over the tree's regions; None where it tells none from another.

    Raises:
        ConfigError: there is no such figure, or the tree does not hold it.
    """
    figure = figure_of(colour)
    nodes = [node for node in tree.nodes if not covers(node.region, tree.bounds)]
    values = [value for node in nodes if (value := figure(node)) is not None]
    if nodes and not values:
        raise ConfigError(f"{tree.record['image']}: the tree holds no contributions; colour it by score")
    # The scores of a chain are all 1, and say nothing.
    if not values or (colour == "score" and is_chain(tree) and len(set(values)) == 1):
        return None
    kind = ScoreScale if colour == "score" else ContributionScale
    return kind.over(max(map(abs, values)))


def _plan(tree: ParseTree, pyramid: Pyramid, width: int, colour: str | None) -> tuple[Drawing, Frame]:
    """What is drawn, and where the image lies on the canvas."""
    check_drawable(tree, pyramid, width)
    frame = overlay_frame(tree, width)
    zoom = max(1.0, max(frame.canvas) / 1200)
    shown = colour_for(tree, colour)
    scale, figure = scale_for(tree, shown), figure_of(shown)
    if is_chain(tree):
        layers, numbers = glimpse_layers(place_glimpses(tree, frame, scale, figure, zoom), zoom)
        return compose(tree, frame, glimpse_legend(tree, scale, figure), layers, scale, numbers), frame
    lines = lines_by_depth(tree, zoom)
    # Without a scale all are gray, and any will do.
    layers = tuple(outlines(frame, line, scale or ScoreScale.over(1), figure) for line in lines.values())
    return compose(tree, frame, depth_legend(lines), layers, scale), frame
