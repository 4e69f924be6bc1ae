"""Where the image lies on a picture, and the thumbnail that fills that place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import ParseTree

WIDTHS = (100, 8192)
"""Least and largest long side of a picture, in picture pixels: legible, and drawn in a laptop's memory."""

MAX_THUMBNAIL_PIXELS = 64 << 20
"""A thumbnail that would decode more level pixels than this is read from the next coarser level instead."""

SQUARES_FROM = 4
"""Enlarged this many times, pixels are shown as the squares that they are."""

PADDING = (226, 226, 226)
"""Gray that is neither white glass nor a dark field."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The image's place on a canvas: ``bounds`` (level 0) fill ``width`` x ``height`` canvas pixels."""

    bounds: Region
    width: int
    height: int
    left: int
    """Padding left of the image, in canvas pixels; as much lies right of it."""
    top: int
    canvas: tuple[int, int]
    """Width and height of image and padding."""

    @property
    def downsample(self) -> float:
        """Level-0 pixels a canvas pixel, along the long side."""
        return max(self.bounds.width, self.bounds.height) / max(self.width, self.height)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the image, in canvas pixels."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def sharper(self, factor: int) -> Frame:
        """Return the same view on a canvas of more pixels."""
        width, height = self.canvas
        return Frame(
            self.bounds,
            self.width * factor,
            self.height * factor,
            self.left * factor,
            self.top * factor,
            (width * factor, height * factor),
        )

    def place(self, region: Region) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of a region in canvas pixels, also outside the canvas."""
        scale_x, scale_y = self.width / self.bounds.width, self.height / self.bounds.height
        return (
            self.left + (region.x - self.bounds.x) * scale_x,
            self.top + (region.y - self.bounds.y) * scale_y,
            self.left + (region.right - self.bounds.x) * scale_x,
            self.top + (region.bottom - self.bounds.y) * scale_y,
        )


def frame_of(bounds: Region, long_side: int, least_side: int) -> Frame:
    """Return the frame with the image's long side at ``long_side`` canvas pixels.

    An image thinner than ``least_side`` is padded to it: a strip of 1 x 100,000 px needs a usable canvas too.
    """
    longest = max(bounds.width, bounds.height)
    width = max(1, round(long_side * bounds.width / longest))
    height = max(1, round(long_side * bounds.height / longest))
    canvas = max(width, least_side), max(height, least_side)
    return Frame(bounds, width, height, (canvas[0] - width) // 2, (canvas[1] - height) // 2, canvas)


def check_drawable(tree: ParseTree, pyramid: Pyramid, width: int) -> None:
    """Raise ConfigError where the tree is not of this image, or the picture's size is impossible."""
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        raise ConfigError(f"a picture is {WIDTHS[0]} to {WIDTHS[1]:,} px wide, got {width}")
    if (tree.width, tree.height) != (pyramid.width, pyramid.height):
        raise ConfigError(
            f"{pyramid.path}: is {pyramid.width} x {pyramid.height} px, but the tree is of an image of "
            f"{tree.width} x {tree.height} px ({tree.record['image']}); draw it on that one"
        )


def draw_thumbnail(pyramid: Pyramid, frame: Frame) -> Image.Image:
    """Return the canvas, RGB, with the image on it; a small one is read as it is and enlarged then."""
    size = _affordable_size(pyramid, frame)
    pixels = pyramid.read(frame.bounds, size).pixels
    image = picture_of(pixels)
    if size != (frame.width, frame.height):
        squares = frame.width >= SQUARES_FROM * size[0] or frame.height >= SQUARES_FROM * size[1]
        image = image.resize(
            (frame.width, frame.height), Image.Resampling.NEAREST if squares else Image.Resampling.BICUBIC
        )
    canvas = Image.new("RGB", frame.canvas, PADDING)
    canvas.paste(image, (frame.left, frame.top))
    return canvas


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return patch pixels (h, w, 1 or 3) as an RGB image."""
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _affordable_size(pyramid: Pyramid, frame: Frame) -> tuple[int, int]:
    """The size to read at: the frame's, or less where level 0 ends or a gap between levels makes it dear."""
    bounds = frame.bounds
    size = _size_at(bounds, max(1.0, frame.downsample), frame)
    level = pyramid.level_for(bounds, size)
    pixels = bounds.area / (level.downsample_x * level.downsample_y)
    coarser = [other for other in pyramid.levels if other.index > level.index]
    if pixels > MAX_THUMBNAIL_PIXELS and coarser:
        return _size_at(bounds, max(coarser[0].downsample_x, coarser[0].downsample_y), frame)
    return size


def _size_at(bounds: Region, downsample: float, frame: Frame) -> tuple[int, int]:
    width, height = round(bounds.width / downsample), round(bounds.height / downsample)
    return min(frame.width, max(1, width)), min(frame.height, max(1, height))
