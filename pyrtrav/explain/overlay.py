"""The overlay: the thumbnail with every attended region outlined, and around it what one needs to read it."""

from __future__ import annotations

import os

from PIL import Image

from pyrtrav.explain.colours import ScoreScale
from pyrtrav.explain.frame import check_drawable, draw_thumbnail, frame_of
from pyrtrav.explain.outline import covers, draw_outlines, lines_by_depth
from pyrtrav.explain.output import check_png, save_png
from pyrtrav.explain.panel import compose
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import ParseTree

LEAST_SIDE = 300
"""Canvas pixels; a thinner image is padded, so that title and legend have room."""

LEAST_LONG_SIDE = 600
"""Canvas pixels; a smaller image is enlarged to it, so that lines and tissue can be told apart."""


def draw_overlay(tree: ParseTree, pyramid: Pyramid, *, width: int = 1200) -> Image.Image:
    """Return the thumbnail with the attended regions, a title, a colour bar and a legend.

    Args:
        tree: what was looked at.
        pyramid: the image that the tree is of; its thumbnail is read, whatever the tree attended.
        width: long side of the thumbnail in picture pixels; a smaller image is shown at its own size, and
            enlarged to 600 px if it is smaller than that.

    Raises:
        ConfigError: the tree is of another image, or the width is impossible.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    check_drawable(tree, pyramid, width)
    longest = round(max(tree.bounds.width, tree.bounds.height))
    frame = frame_of(tree.bounds, min(width, max(longest, LEAST_LONG_SIDE)), LEAST_SIDE)
    lines = lines_by_depth(tree, max(1.0, max(frame.canvas) / 1200))
    coloured = [node.score for node in tree.nodes if not covers(node.region, tree.bounds)]
    scale = ScoreScale.over(max(coloured, default=0.0))
    canvas = draw_thumbnail(pyramid, frame).convert("RGBA")
    for line in lines.values():
        draw_outlines(canvas, frame, line, scale)
    return compose(canvas.convert("RGB"), tree, frame, lines, scale if coloured else None)


def save_overlay(tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, width: int = 1200) -> None:
    """Write ``draw_overlay`` as a PNG, whole or not at all.

    Raises:
        ConfigError: the name does not end in ``.png``, or its folder cannot be written to.
    """
    check_png(path)
    save_png(draw_overlay(tree, pyramid, width=width), path, f"{tree.record['image']}: {tree.label}")
