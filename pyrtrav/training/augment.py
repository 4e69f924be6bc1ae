"""Augmentation that keeps reading lazy: the traversal sees a turned or mirrored image, and only its patches are turned.

A view maps regions into the file's frame before they are read and the patches back afterwards, so attention, grid and
tree stay consistent whatever the turn. It reads the file's colours and carries those in which a model is to see it, the
same for all of its patches; they are applied on the device, to all patches of a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyrtrav.colours import Colours
from pyrtrav.geometry import Region, root_region
from pyrtrav.pyramid.base import Patches, Pyramid
from pyrtrav.training.jitter import random_colours


class View:
    """A pyramid turned by quarter turns, mirrored and moved; it reads like the pyramid itself.

    The frame is a square, which every turn maps onto itself: the glance, or one that is given.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        base_resolution: int,
        turns: int,
        mirror: bool,
        colours: Colours | None = None,
        hints: Sequence[Region] = (),
        frame: Region | None = None,
    ) -> None:
        self.pyramid, self.turns, self.mirror = pyramid, turns % 4, mirror
        self.colours = colours
        self.frame = root_region(pyramid.bounds, base_resolution) if frame is None else frame
        self.bounds = self._turn(pyramid.bounds, forward=True)
        self.hints = tuple(self._turn(hint, forward=True) for hint in hints)
        self.mpp, self.channels, self.path = pyramid.mpp, pyramid.channels, pyramid.path

    def in_file(self, region: Region) -> Region:
        """Return where a region of the view lies in the file, in level-0 pixels."""
        return self._turn(region, forward=False)

    def _turn(self, region: Region, *, forward: bool) -> Region:
        """Map a region between the file's frame and the view's (forward: file to view)."""
        side = self.frame.width
        x, y, w, h = region.x - self.frame.x, region.y - self.frame.y, region.width, region.height
        if not forward and self.mirror:
            x = side - x - w
        for _ in range(self.turns if forward else (4 - self.turns) % 4):
            # A quarter turn counter-clockwise, as numpy.rot90 does: right edge becomes top.
            x, y, w, h = y, side - x - w, h, w
        if forward and self.mirror:
            x = side - x - w
        return Region(x + self.frame.x, y + self.frame.y, w, h)

    def read_many(
        self, regions: Sequence[Region], size: int | tuple[int, int], *, out: NDArray[np.uint8] | None = None
    ) -> Patches:
        """Read patches of regions given in the view's frame; ``size`` is their side, or (width, height)."""
        width, height = size if isinstance(size, tuple) else (size, size)
        stored = (height, width) if self.turns % 2 else (width, height)
        patches = self.pyramid.read_many([self._turn(region, forward=False) for region in regions], stored)
        pixels = np.rot90(patches.pixels, self.turns, axes=(1, 2))
        if self.mirror:
            pixels = pixels[:, :, ::-1]
        if out is None:
            return Patches(np.ascontiguousarray(pixels), None, patches.errors)
        out[:] = pixels
        return Patches(out, None, patches.errors)


def random_view(
    pyramid: Pyramid,
    base_resolution: int,
    random: np.random.Generator,
    *,
    turn: bool,
    jitter: float,
    hed: float = 0.0,
    mirror: bool = False,
    shift: float = 0.0,
    hints: Sequence[Region] = (),
) -> View:
    """Draw a view; hints (level-0 pixels) go with it.

    Args:
        turn: any of the eight turns and mirrorings.
        jitter, hed: colours (see ``random_colours``).
        mirror: left and right may change places; ``turn`` includes that.
        shift: by how much of its side, at most, the frame is larger than the glance, which lies anywhere in it: cells
            and patches fall otherwise on the image, and nothing of it is lost.
    """
    turns, mirrored = (int(random.integers(4)), bool(random.integers(2))) if turn else (0, False)
    colours = random_colours(random, pyramid.channels, jitter=jitter, hed=hed)
    if mirror and not turn:
        mirrored = bool(random.integers(2))
    frame = None
    if shift > 0:
        glance = root_region(pyramid.bounds, base_resolution)
        more, left, above = (random.random(3) * [shift, 1, 1]).tolist()
        slack = more * glance.width
        side = glance.width + slack
        frame = Region(glance.x - left * slack, glance.y - above * slack, side, side)
    return View(pyramid, base_resolution, turns, mirrored, colours, hints, frame)
