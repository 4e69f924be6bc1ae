"""The foveated picture: every place at the resolution at which the model saw it (the paper's figures 3, 7).

Regions are read again as the model read them and painted coarse to fine, smoothly enlarged, so that the
finest look wins at every place. Nothing else is read: the picture costs the tiles that the model looked at.
One batch of patches is held at a time: memory grows with the picture, not with the slide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.explain.drawing import Drawing, Rectangle, Text, paint
from pyrtrav.explain.frame import PADDING, Frame, check_drawable, frame_of, picture_of
from pyrtrav.explain.lettering import (
    FAINT_INK,
    INK,
    cost_text,
    downsample_text,
    factor_text,
    font,
    shortened,
    title,
)
from pyrtrav.explain.output import check_picture, is_pdf, save_png
from pyrtrav.explain.panel import Sizes, bar_of_length
from pyrtrav.explain.vector import SHARPNESS, save_pdf
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import Node, ParseTree

LEAST_SIDE = 420
"""Canvas pixels; a thinner image is padded, so that the footer has room."""

PIECE = 1024
"""Longest side of what is read in one piece, in patch pixels: fcn sees a whole slide as one patch."""

_BATCH_PIXELS = 2 << 20


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a look, read on its own: a patch as the model saw it, or a block of a very large one."""

    region: Region
    size: tuple[int, int]
    """Width and height in patch pixels."""


def draw_foveated(tree: ParseTree, pyramid: Pyramid, *, width: int = 1600) -> Image.Image:
    """Return the image as the model saw it, over a footer.

    Args:
        tree: what was looked at.
        pyramid: the image that the tree is of.
        width: long side of the image on the picture, in picture pixels.

    Raises:
        ConfigError: the tree is of another image, or the width is impossible.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    check_drawable(tree, pyramid, width)
    frame = frame_of(tree.bounds, width, LEAST_SIDE)
    canvas, everything = paint_seen(tree, pyramid, frame)
    return paint(_footer(tree, frame, frame.downsample, everything=everything), canvas)


def paint_seen(tree: ParseTree, pyramid: Pyramid, frame: Frame) -> tuple[Image.Image, bool]:
    """Return the canvas with the image as the model saw it, and whether it saw all of it."""
    canvas = Image.new("RGB", frame.canvas, PADDING)
    seen = np.zeros((frame.height, frame.width), np.bool_)
    for piece, pixels in _looks(tree, pyramid):
        _paint(canvas, seen, frame, piece, pixels)
    return canvas, bool(seen.all())


def save_foveated(tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, width: int = 1600) -> None:
    """Write ``draw_foveated`` as a PNG, or with words as vectors as a PDF, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.png`` nor ``.pdf``, or its folder cannot be written to.
    """
    check_picture(path)
    name = f"{tree.record['image']}: {tree.label}"
    if not is_pdf(path):
        save_png(draw_foveated(tree, pyramid, width=width), path, name)
        return
    check_drawable(tree, pyramid, width)
    frame = frame_of(tree.bounds, width, LEAST_SIDE)
    sharp = frame.sharper(SHARPNESS)
    canvas, everything = paint_seen(tree, pyramid, sharp)
    save_pdf(_footer(tree, frame, sharp.downsample, everything=everything), canvas, path, name)


def _looks(tree: ParseTree, pyramid: Pyramid) -> Iterator[tuple[_Piece, NDArray[np.uint8]]]:
    """Everything that was looked at, coarse to fine, with its pixels (h, w, channels)."""
    nodes = sorted(tree.nodes, key=lambda node: (-node.downsample, node.depth, node.id))
    pieces = (piece for node in nodes for piece in _pieces(node, tree.bounds))
    for size, same in groupby(pieces, key=lambda piece: piece.size):
        for batch in _batches(list(same), max(1, _BATCH_PIXELS // (size[0] * size[1]))):
            patches = pyramid.read_many([piece.region for piece in batch], size)
            for error in patches.errors:
                if error is not None:
                    raise error
            yield from zip(batch, patches.pixels, strict=True)


def _batches(pieces: Sequence[_Piece], count: int) -> Iterator[Sequence[_Piece]]:
    return (pieces[i : i + count] for i in range(0, len(pieces), count))


def _pieces(node: Node, bounds: Region) -> Iterator[_Piece]:
    """The look in blocks of at most PIECE patch pixels a side, without those that lie beside the image."""
    region = node.region
    columns = max(1, round(region.width / node.downsample))
    rows = max(1, round(region.height / node.downsample))
    if columns <= PIECE and rows <= PIECE:
        yield _Piece(region, (columns, rows))
        return
    step_x, step_y = region.width / columns, region.height / rows
    for top in range(0, rows, PIECE):
        for left in range(0, columns, PIECE):
            size = min(PIECE, columns - left), min(PIECE, rows - top)
            block = Region(region.x + left * step_x, region.y + top * step_y, size[0] * step_x, size[1] * step_y)
            if block.intersects(bounds):
                yield _Piece(block, size)


def _paint(
    canvas: Image.Image, seen: NDArray[np.bool_], frame: Frame, piece: _Piece, pixels: NDArray[np.uint8]
) -> None:
    """Paint one patch over its place; what lies beside the image is left out."""
    place = frame.place(piece.region)
    x = _axis(place[0], place[2], frame.box[0], frame.box[2], piece.size[0])
    y = _axis(place[1], place[3], frame.box[1], frame.box[3], piece.size[1])
    if x is None or y is None:
        return
    patch = picture_of(pixels)
    # Bilinear is the smooth blur of the paper's figures; made smaller, it is a weighted mean.
    shown = patch.resize((x[1] - x[0], y[1] - y[0]), Image.Resampling.BILINEAR, (x[2], y[2], x[3], y[3]))
    canvas.paste(shown, (x[0], y[0]))
    seen[y[0] - frame.top : y[1] - frame.top, x[0] - frame.left : x[1] - frame.left] = True


def _axis(start: float, end: float, least: int, most: int, size: int) -> tuple[int, int, float, float] | None:
    """Along one axis: first and last + 1 canvas pixel of a patch, and the patch pixels that belong there.

    None where the patch has no canvas pixel: it lies outside, or is too small to be seen.
    """
    first, last = max(least, round(start)), min(most, round(end))
    if last <= first:
        return None
    scale = size / (end - start)
    return first, last, max(0.0, (first - start) * scale), min(float(size), (last - start) * scale)


def _footer(tree: ParseTree, frame: Frame, downsample: float, *, everything: bool) -> Drawing:
    """The picture's canvas with words, and a scale bar where the size of a pixel is known, under it.

    ``downsample`` is the canvas's, which may have more pixels than its place.
    """
    width, height = frame.canvas
    sizes = Sizes(max(0.75, max(width, height) / 1600))
    large, small, margin = sizes(24), sizes(17), sizes(14)
    room = width - 2 * margin
    lines = [
        (title(tree, font(large), room), large, INK),
        (f"resolution as seen by the model: {downsample_text(tree.nodes)}", small, FAINT_INK),
    ]
    if min(node.downsample for node in tree.nodes) < downsample * (1 - 1e-9):
        lines.append((f"picture: {factor_text(downsample)}, finer looks are shown at that", small, FAINT_INK))
    if not everything:
        lines.append(("gray: not looked at", small, FAINT_INK))
    lines.append((cost_text(tree), small, FAINT_INK))
    y = height + margin
    shapes: list[Rectangle] = []
    texts: list[Text] = []
    if tree.mpp:
        shapes, texts = bar_of_length(frame, tree.mpp, margin, y, sizes)
        y += sizes(26)
    for text, size, ink in lines:
        texts.append(Text(margin, y, shortened(text, font(size), room), size, ink))
        y += round(size * 1.35)
    return Drawing((width, y + margin), (0, 0, width - 1, height - 1), (), tuple(shapes), tuple(texts))
