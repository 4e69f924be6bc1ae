"""Many regions read together: which tiles they need, each once, and where the tiles' pixels go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyrtrav.errors import PyramidError, RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.resample import AreaMean, Box, Copy, Part, Place
from pyrtrav.pyramid.tiles import Key, Level, Patches, Tile

MAX_TILES = 1 << 20
"""Tiles that one call may touch; more is an image without a pyramid, or one with an impossible size."""

# Decoded tiles that wait to be added; bounds the memory of a call of any size.
_RUN_BYTES = 16 << 20

# Patch pixels that are averaged together (12 bytes each).
_CANVAS_PIXELS = 2 << 20

# A position this close to a whole pixel is that pixel: float noise (1e-10 at coordinates of a million) must
# neither decode one more tile nor turn a copy into an average.
_SNAP = 1e-6


@dataclass(slots=True)
class Request:
    """One region of a call: where it lies in its level, and in the canvas that its patch is cut from."""

    index: int
    level: Level
    box: Box
    canvas: _Canvas | None = None
    left: int = 0
    top: int = 0


class _Canvas:
    """Requests that are made together, and the tiles that they still wait for."""

    def __init__(self, requests: list[Request], box: Box, size: tuple[int, int]) -> None:
        self.requests, self.box, self.size = requests, box, size
        self.waits_for = 0
        self.made: Copy | AreaMean | None = None
        for request in requests:
            request.canvas = self
            request.left = round((request.box.left - box.left) / box.step_x)
            request.top = round((request.box.top - box.top) / box.step_y)

    def begin(self, patches: Patches, background: tuple[int, ...]) -> Copy | AreaMean:
        """Return what collects the tiles; it takes memory from the first tile to the last."""
        if self.made is None:
            first = self.requests[0]
            level_size = first.level.width, first.level.height
            if self.box.is_copy:
                valid = None if patches.valid is None else patches.valid[first.index]
                self.made = Copy(self.box, level_size, background, patches.pixels[first.index], valid)
            else:
                self.made = AreaMean(self.box, self.size, level_size, background, patches.valid is not None)
        return self.made

    def finish(self, patches: Patches, background: tuple[int, ...]) -> None:
        """Cut the patches out."""
        made, self.made = self.begin(patches, background), None
        if isinstance(made, Copy):
            return
        pixels, valid = made.result(), made.result_valid()
        height, width = patches.pixels.shape[1:3]
        for request in self.requests:
            part = slice(request.top, request.top + height), slice(request.left, request.left + width)
            patches.pixels[request.index] = pixels[part]
            if patches.valid is not None and valid is not None:
                patches.valid[request.index] = valid[part]


class Batch:
    """The plan of one call. Tile by tile: ``parts`` (in any thread), then ``add`` (in the caller's)."""

    def __init__(self, requests: Sequence[Request], background: tuple[int, ...], patches: Patches) -> None:
        self._patches, self._background = patches, background
        height, width = patches.pixels.shape[1:3]
        canvases = list(_canvases(requests, (width, height)))
        self.plan = _plan(requests, (width, height))
        for touching in self.plan.values():
            for canvas in _distinct(touching):
                canvas.waits_for += 1
        for canvas in canvases:
            if canvas.waits_for == 0:  # wholly outside the image
                canvas.finish(patches, background)

    def runs(self, levels: Sequence[Level]) -> Iterator[list[Key]]:
        """The planned tiles, in file order, in runs whose decoded size is bounded."""
        run: list[Key] = []
        held = 0
        for key in list(self.plan):
            size = levels[key[0]].tile_width * levels[key[0]].tile_height * self._patches.pixels.shape[3]
            if run and held + size > _RUN_BYTES:
                yield run
                run, held = [], 0
            run.append(key)
            held += size
        if run:
            yield run

    def begin(self, run: Sequence[Key]) -> None:
        """Make ready what the run's tiles go to."""
        for key in run:
            for canvas in _distinct(self.plan[key]):
                canvas.begin(self._patches, self._background)

    def parts(self, key: Key, tile: Tile | None) -> list[Part | None]:
        """Copy a tile to where it is copied, and return what it adds elsewhere, canvas by canvas."""
        touching = self.plan[key]
        level = touching[0].level
        x, y = key[1] * level.tile_width, key[2] * level.tile_height
        at = Place(x, y, min(level.tile_width, level.width - x), min(level.tile_height, level.height - y))
        pixels, valid = (None, None) if tile is None else tile
        parts: list[Part | None] = []
        for canvas in _distinct(touching):
            if isinstance(canvas.made, Copy):
                canvas.made.paste(pixels, valid, at)
                parts.append(None)
            elif canvas.made is not None:
                parts.append(canvas.made.part(pixels, valid, at))
        return parts

    def add(self, key: Key, parts: list[Part | None] | PyramidError) -> None:
        """Add what ``parts`` returned, or note the error, and finish what waits for no other tile."""
        touching = self.plan.pop(key)
        canvases = _distinct(touching)
        if isinstance(parts, PyramidError):
            for request in touching:
                self._patches.errors[request.index] = self._patches.errors[request.index] or parts
            parts = [None] * len(canvases)
        for canvas, part in zip(canvases, parts, strict=True):
            if part is not None and isinstance(canvas.made, AreaMean):
                canvas.made.add(part)
            canvas.waits_for -= 1
            if canvas.waits_for == 0:
                canvas.finish(self._patches, self._background)


def request_of(index: int, region: Region, size: tuple[int, int], level: Level, whole: tuple[int, int]) -> Request:
    """Return where a region lies in a level, by the ratio per axis of its size and the image's ``whole``."""
    left, step_x = _axis(region.x, region.width, level.width / whole[0], size[0])
    top, step_y = _axis(region.y, region.height, level.height / whole[1], size[1])
    return Request(index, level, Box(left, top, step_x, step_y))


def _axis(start: float, length: float, ratio: float, count: int) -> tuple[float, float]:
    """Corner and pixel side along one axis."""
    first, last = _snapped(start * ratio), _snapped((start + length) * ratio)
    return first, (last - first) / count


def _snapped(position: float) -> float:
    whole = round(position)
    return float(whole) if abs(position - whole) < _SNAP else position


def _distinct(requests: Sequence[Request]) -> list[_Canvas]:
    return list(dict.fromkeys(request.canvas for request in requests if request.canvas is not None))


def _plan(requests: Sequence[Request], size: tuple[int, int]) -> dict[Key, list[Request]]:
    """Every tile with the requests that need it, in file order."""
    wanted: dict[Key, list[Request]] = {}
    for request in requests:
        level = request.level
        left, top, right, bottom = request.box.extent(*size)
        columns = tile_range(left, right, level.tile_width, level.width)
        rows = tile_range(top, bottom, level.tile_height, level.height)
        if len(columns) * len(rows) + len(wanted) > MAX_TILES:
            raise RegionError(
                f"reading touches {len(columns) * len(rows):,} tiles of a level of {level.width} x "
                f"{level.height} at once (the limit is {MAX_TILES:,}); make coarser levels with `pyrtrav convert`"
            )
        for row in rows:
            for column in columns:
                wanted.setdefault((level.index, row, column), []).append(request)
    return {(level, column, row): wanted[level, row, column] for level, row, column in sorted(wanted)}


def tile_range(first: float, last: float, tile: int, limit: int) -> range:
    """The tiles along one axis that share area with ``first .. last``, within the image."""
    first, last = max(first, 0.0), min(last, float(limit))
    if last <= first:
        return range(0)
    return range(int(first // tile), int(-(-last // tile)))


def _canvases(requests: Sequence[Request], size: tuple[int, int]) -> Iterator[_Canvas]:
    """Requests that are averaged on one lattice and lie close share a canvas; others have one each.

    The cells of one depth overlap by half, so that on their own most of the averaging would be done four times.
    """
    block = max(1, math.isqrt(_CANVAS_PIXELS) // max(size) - 1) * max(size)
    lattices: dict[tuple[float, ...], list[tuple[int, int, Request]]] = {}
    for request in requests:
        box = request.box
        if box.is_copy:
            yield _Canvas([request], box, size)
            continue
        (column, phase_x), (row, phase_y) = _lattice(box.left, box.step_x), _lattice(box.top, box.step_y)
        lattice = request.level.index, round(box.step_x, 10), round(box.step_y, 10), phase_x, phase_y
        lattices.setdefault(lattice, []).append((column, row, request))
    for placed in lattices.values():
        first_column = min(column for column, _, _ in placed)
        first_row = min(row for _, row, _ in placed)
        blocks: dict[tuple[int, int], list[Request]] = {}
        for column, row, request in placed:
            blocks.setdefault(((column - first_column) // block, (row - first_row) // block), []).append(request)
        for group in blocks.values():
            yield from _together(group, size)


def _together(group: list[Request], size: tuple[int, int]) -> Iterator[_Canvas]:
    """One canvas around all of the group where that is less work than one for each."""
    left, top = min(request.box.left for request in group), min(request.box.top for request in group)
    step_x, step_y = group[0].box.step_x, group[0].box.step_y
    width = round((max(request.box.left for request in group) - left) / step_x) + size[0]
    height = round((max(request.box.top for request in group) - top) / step_y) + size[1]
    if width * height < len(group) * size[0] * size[1]:
        yield _Canvas(group, Box(left, top, step_x, step_y), (width, height))
    else:
        yield from (_Canvas([request], request.box, size) for request in group)


def _lattice(position: float, step: float) -> tuple[int, float]:
    """How many whole steps a position is from 0, and the rest as a fraction, free of float noise."""
    steps = math.floor(position / step + _SNAP)
    return steps, round(position / step - steps, 8)
