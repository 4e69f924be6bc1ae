"""The picture of an occlusion: how much the prediction changes where noise covers a place, over the thumbnail."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain.colours import ScoreScale
from pyrtrav.explain.drawing import Drawing, paint
from pyrtrav.explain.frame import Frame, check_drawable, draw_thumbnail
from pyrtrav.explain.output import check_picture, is_pdf, save_png
from pyrtrav.explain.overlay import overlay_frame
from pyrtrav.explain.panel import NO_LEGEND, compose
from pyrtrav.explain.vector import SHARPNESS, save_pdf
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import ParseTree

_MOST_OPAQUE = 0.85


@dataclass(frozen=True, slots=True)
class SensitivityScale(ScoreScale):
    """Nats by which the prediction changes, in either direction as in the paper's figures, as colours."""

    @property
    def title(self) -> str:
        return "nats under noise"

    def ticks(self) -> list[tuple[float, str]]:
        count = round(self.limit / self.step)
        return [(i / count, f"{float(f'{i * self.step:.3g}'):g}") for i in range(count + 1)]


def draw_sensitivity(tree: ParseTree, pyramid: Pyramid, *, width: int = 1200) -> Image.Image:
    """Return the thumbnail in gray under how much noise over each place changes the prediction's log-odds, in nats.

    Every place has the figure of the finest look that shows it; what the prediction does not depend on stays gray.

    Args:
        tree: with an occlusion (``Predictor.explain(squares=)``).
        pyramid: the image that the tree is of.
        width: long side of the thumbnail in picture pixels.

    Raises:
        ConfigError: the tree is of another image or has no occlusion, or the width is impossible.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    drawing, frame, scale = _plan(tree, pyramid, width)
    return paint(drawing, _canvas(tree, pyramid, frame, scale))


def save_sensitivity(tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, width: int = 1200) -> None:
    """Write ``draw_sensitivity`` as a PNG, or with words as vectors as a PDF, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.png`` nor ``.pdf``, or its folder cannot be written to.
    """
    check_picture(path)
    name = f"{tree.record['image']}: {tree.label}"
    drawing, frame, scale = _plan(tree, pyramid, width)
    if is_pdf(path):
        save_pdf(drawing, _canvas(tree, pyramid, frame.sharper(SHARPNESS), scale), path, name)
    else:
        save_png(paint(drawing, _canvas(tree, pyramid, frame, scale)), path, name)


def _plan(tree: ParseTree, pyramid: Pyramid, width: int) -> tuple[Drawing, Frame, SensitivityScale]:
    check_drawable(tree, pyramid, width)
    if "occlusion" not in tree.record:
        raise ConfigError(f"{tree.record['image']}: its tree holds no occlusion; make it again with --occlusion")
    frame = overlay_frame(tree, width)
    limit = ScoreScale.over(float(_values(tree, frame).max()))  # of what is seen
    scale = SensitivityScale(limit.limit, limit.step)
    return compose(tree, frame, NO_LEGEND, (), scale), frame, scale


def _canvas(tree: ParseTree, pyramid: Pyramid, frame: Frame, scale: SensitivityScale) -> Image.Image:
    """The thumbnail in gray, and over it the colours, which hide it where much is lost."""
    gray = np.asarray(draw_thumbnail(pyramid, frame).convert("L"), np.float64)[..., None]
    position = (_values(tree, frame) / scale.limit).clip(0, 1)
    shades = np.array([scale.colour(i / 255) for i in range(256)], np.float64)[np.rint(255 * position).astype(int)]
    opacity = _MOST_OPAQUE * position[..., None] ** 0.8
    return Image.fromarray(np.rint((1 - opacity) * gray + opacity * shades).astype(np.uint8))


def _values(tree: ParseTree, frame: Frame) -> NDArray[np.float64]:
    """Nats of each canvas pixel (row, column): of the finest look, painted last; 0 where none looked."""
    values = np.zeros(frame.canvas[::-1])
    looks = tree.record["occlusion"]["looks"]
    for node in sorted(tree.nodes, key=lambda node: (-node.downsample, node.depth, node.id)):
        left, top, right, bottom = frame.place(node.region)
        look = abs(np.asarray(looks[node.id], np.float64))
        columns = np.arange(max(frame.left, round(left)), min(frame.left + frame.width, round(right)))
        rows = np.arange(max(frame.top, round(top)), min(frame.top + frame.height, round(bottom)))
        if len(columns) and len(rows):
            x = ((columns + 0.5 - left) / (right - left) * look.shape[1]).astype(int).clip(0, look.shape[1] - 1)
            y = ((rows + 0.5 - top) / (bottom - top) * look.shape[0]).astype(int).clip(0, look.shape[0] - 1)
            values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = look[y[:, None], x]
    return values
