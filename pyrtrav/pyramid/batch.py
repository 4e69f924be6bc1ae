"""Many regions read together: which tiles they need, each once, and where the tiles' pixels go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from pyrtrav.errors import PyramidError, RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.resample import AreaMean, Box, Copy
from pyrtrav.pyramid.tiles import Key, Level, Patches, Tile

MAX_TILES = 1 << 20
"""Tiles that one call may touch; more is an image without a pyramid, or one with an impossible size."""

# Decoded size of the tiles that are asked for ahead, where that is of use.
_RUN_BYTES = 64 << 20

# Patch pixels that are averaged together (12 bytes each).
_CANVAS_PIXELS = 2 << 20

# A position this close to a whole pixel is that pixel: float noise (1e-10 at coordinates of a million) must
# neither decode one more tile nor turn a copy into an average.
_SNAP = 1e-6


Planned = tuple[Key, int]
"""A tile and how much its decoder shrinks it: 1, 2, 4 or 8."""


@dataclass(slots=True)
class Request:
    """One region of a call: where it lies in its level, and in the canvas that its patch is cut from."""

    index: int
    level: Level
    box: Box
    shrink: int = 1
    left: int = 0
    top: int = 0

    def tiles(self, size: tuple[int, int]) -> tuple[range, range]:
        """Columns and rows of the tiles that it touches."""
        left, top, right, bottom = self.box.extent(*size)
        level = self.level
        return (
            tile_range(left, right, level.tile_width, level.width),
            tile_range(top, bottom, level.tile_height, level.height),
        )


class _Canvas:
    """Requests that are made together, and how many tiles they still wait for."""

    def __init__(self, requests: list[Request], box: Box, size: tuple[int, int]) -> None:
        self.requests, self.box, self.size = requests, box, size
        self.is_copy = box.is_copy
        self.waits_for = 0
        self.made: Copy | AreaMean | None = None
        for request in () if self.is_copy else requests:
            request.left = round((request.box.left - box.left) / box.step_x)
            request.top = round((request.box.top - box.top) / box.step_y)

    def begin(self, patches: Patches, background: tuple[int, ...]) -> Copy | AreaMean:
        """Return what collects the tiles; it takes memory from the first tile to the last."""
        if self.made is not None:
            return self.made
        first = self.requests[0]
        level_size = first.level.width, first.level.height
        if self.is_copy:
            valid = None if patches.valid is None else patches.valid[first.index]
            self.made = Copy(self.box, level_size, background, patches.pixels[first.index], valid)
        else:
            self.made = AreaMean(self.box, self.size, level_size, background, patches.valid is not None)
        return self.made

    def finish(self, patches: Patches) -> None:
        """Cut the patches out."""
        made, self.made = self.made, None
        if not isinstance(made, AreaMean):
            return  # copies are in place
        pixels, valid = made.result(), made.result_valid()
        height, width = patches.pixels.shape[1:3]
        for request in self.requests:
            part = slice(request.top, request.top + height), slice(request.left, request.left + width)
            patches.pixels[request.index] = pixels[part]
            if patches.valid is not None and valid is not None:
                patches.valid[request.index] = valid[part]


class Batch:
    """The plan of one call: which tiles, in which order, and what becomes of each. ``deliver`` is for any thread."""

    def __init__(self, requests: Sequence[Request], background: tuple[int, ...], patches: Patches) -> None:
        self._patches, self._background = patches, background
        height, width = patches.pixels.shape[1:3]
        self._size = width, height
        self._lock = Lock()
        canvases = list(_canvases(requests, self._size))
        self.plan = _plan(canvases, self._size)
        for touching in self.plan.values():
            for canvas in touching:
                canvas.waits_for += 1
        for canvas in canvases:
            if canvas.waits_for == 0:
                self._leave_empty(canvas)

    def runs(self, levels: Sequence[Level]) -> Iterator[list[Planned]]:
        """The planned tiles, in file order, in runs whose decoded size is bounded."""
        run: list[Planned] = []
        held = 0
        for planned in list(self.plan):
            level = levels[planned[0][0]]
            size = level.tile_width * level.tile_height * self._patches.pixels.shape[3]
            if run and held + size > _RUN_BYTES:
                yield run
                run, held = [], 0
            run.append(planned)
            held += size
        if run:
            yield run

    def deliver(self, planned: Planned, tile: Tile | PyramidError | None) -> None:
        """Put a tile where it is wanted, or note why it is missing; None is an empty one."""
        (_, column, row), shrink = planned
        touching = self.plan[planned]
        level = touching[0].requests[0].level
        if isinstance(tile, PyramidError):
            self._note(tile, touching, column, row)
        else:
            at = level.tile_at(column, row)
            pixels, valid = (None, None) if tile is None else tile
            for canvas in touching:
                made = canvas.made or self._begun(canvas)
                made.add(pixels, valid, at, shrink)
        for canvas in touching:
            if not canvas.is_copy and self._is_last(canvas):
                canvas.finish(self._patches)

    def _leave_empty(self, canvas: _Canvas) -> None:
        """Wholly outside the image, however far."""
        for request in canvas.requests:
            self._patches.pixels[request.index] = self._background
            if self._patches.valid is not None:
                self._patches.valid[request.index] = False

    def _begun(self, canvas: _Canvas) -> Copy | AreaMean:
        with self._lock:
            return canvas.begin(self._patches, self._background)

    def _is_last(self, canvas: _Canvas) -> bool:
        """Count a tile that came; copies are in place with each."""
        with self._lock:
            canvas.waits_for -= 1
            return canvas.waits_for == 0

    def _note(self, error: PyramidError, touching: list[_Canvas], column: int, row: int) -> None:
        for canvas in touching:
            for request in canvas.requests:
                columns, rows = request.tiles(self._size)
                if column in columns and row in rows:
                    self._patches.errors[request.index] = self._patches.errors[request.index] or error


def box_of(region: Region, size: tuple[int, int], level: Level, whole: tuple[int, int]) -> Box:
    """Return where a region lies in a level, by the ratio per axis of its size and the image's ``whole``."""
    left, step_x = _axis(region.x, region.width, level.width / whole[0], size[0])
    top, step_y = _axis(region.y, region.height, level.height / whole[1], size[1])
    return Box(left, top, step_x, step_y)


def _axis(start: float, length: float, ratio: float, count: int) -> tuple[float, float]:
    """Corner and pixel side along one axis."""
    first, last = _snapped(start * ratio), _snapped((start + length) * ratio)
    return first, (last - first) / count


def _snapped(position: float) -> float:
    whole = round(position)
    return float(whole) if abs(position - whole) < _SNAP else position


def _plan(canvases: Sequence[_Canvas], size: tuple[int, int]) -> dict[Planned, list[_Canvas]]:
    """Every tile with the canvases that need it, in file order."""
    wanted: dict[tuple[int, int, int, int], dict[_Canvas, None]] = {}
    for canvas in canvases:
        for request in canvas.requests:
            columns, rows = request.tiles(size)
            if len(columns) * len(rows) + len(wanted) > MAX_TILES:
                level = request.level
                raise RegionError(
                    f"reading touches {len(columns) * len(rows):,} tiles of a level of {level.width} x "
                    f"{level.height} at once (the limit is {MAX_TILES:,}); make coarser levels with `pyrtrav convert`"
                )
            for row in rows:
                for column in columns:
                    place = request.level.index, row, column, _shrink(request, column, row)
                    wanted.setdefault(place, {})[canvas] = None
    return {
        ((number, column, row), shrink): list(wanted[number, row, column, shrink])
        for number, row, column, shrink in sorted(wanted)
    }


def _shrink(request: Request, column: int, row: int) -> int:
    """What the tile is shrunk by: not at all where the image ends inside of a shrunk pixel."""
    if request.shrink > 1:
        _, _, width, height = request.level.tile_at(column, row)
        if width % request.shrink or height % request.shrink:
            return 1
    return request.shrink


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
        lattice = request.level.index, request.shrink, round(box.step_x, 10), round(box.step_y, 10), phase_x, phase_y
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
