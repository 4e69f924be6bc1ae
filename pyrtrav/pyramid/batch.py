"""Many regions read together: which tiles they need, each once, and where the tiles' pixels go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from pyrtrav.errors import PyramidError, RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.resample import AreaMean, Box, Copy, Mask, Pixels
from pyrtrav.pyramid.tiles import Key, Level, Patches, Place, Tile

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
    is_copy: bool
    shrink: int = 1
    left: int = 0
    top: int = 0


class _Copied(Copy):
    """A request whose patch pixels are level pixels: each tile is in place once it is added."""

    def __init__(self, request: Request, patches: Patches, background: tuple[int, ...]) -> None:
        index, level = request.index, request.level
        valid = None if patches.valid is None else patches.valid[index]
        super().__init__(request.box, (level.width, level.height), background, patches.pixels[index], valid)
        self.requests, self.level, self.shrink = (request,), level, request.shrink
        self.extents = ((self.left, self.top, self.right, self.bottom),)


class _Averaged:
    """Requests that are averaged on one canvas, and how many tiles they still wait for."""

    def __init__(
        self,
        requests: Sequence[Request],
        box: Box,
        size: tuple[int, int],
        patches: Patches,
        background: tuple[int, ...],
    ) -> None:
        self.requests, self.level, self.shrink = requests, requests[0].level, requests[0].shrink
        self._box, self._size, self._patches, self._background = box, size, patches, background
        height, width = patches.pixels.shape[1:3]
        self.extents = [request.box.extent(width, height) for request in requests]
        self.waits_for = 0
        self._made: AreaMean | None = None
        self._lock = Lock()
        for request in requests:
            request.left = round((request.box.left - box.left) / box.step_x)
            request.top = round((request.box.top - box.top) / box.step_y)

    def add(self, tile: Pixels | None, valid: Mask | None, at: Place, shrink: int) -> None:
        """Collect a tile; memory is held from the first one to the last."""
        with self._lock:
            if self._made is None:
                whole, mask = (self.level.width, self.level.height), self._patches.valid is not None
                self._made = AreaMean(self._box, self._size, whole, self._background, mask)
        self._made.add(tile, valid, at, shrink)

    def came(self) -> None:
        """Count a tile, right or wrong; after the last one the patches are cut out."""
        with self._lock:
            self.waits_for -= 1
            if self.waits_for > 0:
                return
        made, self._made = self._made, None
        if made is None:
            return  # all were wrong
        pixels, valid, patches = made.result(), made.result_valid(), self._patches
        height, width = patches.pixels.shape[1:3]
        for request in self.requests:
            part = slice(request.top, request.top + height), slice(request.left, request.left + width)
            patches.pixels[request.index] = pixels[part]
            if patches.valid is not None and valid is not None:
                patches.valid[request.index] = valid[part]

    def leave_empty(self) -> None:
        """Wholly outside the image, however far."""
        for request in self.requests:
            self._patches.pixels[request.index] = self._background
            if self._patches.valid is not None:
                self._patches.valid[request.index] = False


_Target = _Copied | _Averaged


class Batch:
    """The plan of one call: which tiles, in which order, and what becomes of each. ``deliver`` is for any thread."""

    def __init__(self, requests: Sequence[Request], background: tuple[int, ...], patches: Patches) -> None:
        self._patches = patches
        targets = list(_targets(requests, patches, background))
        self.plan = _plan(targets)
        averaged = [target for target in targets if isinstance(target, _Averaged)]
        if not averaged:
            return
        for touching in self.plan.values():
            for target in touching:
                if isinstance(target, _Averaged):
                    target.waits_for += 1
        for target in averaged:
            if target.waits_for == 0:
                target.leave_empty()

    def runs(self, levels: Sequence[Level]) -> Iterator[list[Planned]]:
        """The planned tiles, in file order, in runs whose decoded size is bounded."""
        sizes = [level.tile_width * level.tile_height * self._patches.pixels.shape[3] for level in levels]
        run: list[Planned] = []
        held = 0
        for planned in self.plan:
            size = sizes[planned[0][0]]
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
        at = touching[0].level.tile_at(column, row)
        if isinstance(tile, PyramidError):
            self._note(tile, touching, at)
        else:
            pixels, valid = (None, None) if tile is None else tile
            for target in touching:
                target.add(pixels, valid, at, shrink)
        for target in touching:
            if isinstance(target, _Averaged):
                target.came()

    def _note(self, error: PyramidError, touching: list[_Target], at: Place) -> None:
        errors = self._patches.errors
        for target in touching:
            for request, (left, top, right, bottom) in zip(target.requests, target.extents, strict=True):
                if left < at.x + at.width and right > at.x and top < at.y + at.height and bottom > at.y:
                    errors[request.index] = errors[request.index] or error


def box_of(region: Region, size: tuple[int, int], level: Level, whole: tuple[int, int]) -> Box:
    """Return where a region lies in a level, by the ratio per axis of its size and the image's ``whole``."""
    left, step_x = _axis(region.x, region.width, level.width / whole[0], size[0])
    top, step_y = _axis(region.y, region.height, level.height / whole[1], size[1])
    return Box(left, top, step_x, step_y)


def _axis(start: float, length: float, ratio: float, count: int) -> tuple[float, float]:
    """Corner and pixel side along one axis."""
    first, last = start * ratio, (start + length) * ratio
    if not (first.is_integer() and last.is_integer()):
        first, last = _snapped(first), _snapped(last)
    return first, (last - first) / count


def _snapped(position: float) -> float:
    whole = round(position)
    return float(whole) if abs(position - whole) < _SNAP else position


def _plan(targets: Sequence[_Target]) -> dict[Planned, list[_Target]]:
    """Every tile with the targets that need it, in file order."""
    wanted: dict[tuple[int, int, int, int], list[_Target]] = {}
    for target in targets:
        level, shrink = target.level, target.shrink
        for left, top, right, bottom in target.extents:
            columns = tile_range(left, right, level.tile_width, level.width)
            rows = tile_range(top, bottom, level.tile_height, level.height)
            if len(columns) * len(rows) + len(wanted) > MAX_TILES:
                raise RegionError(
                    f"reading touches {len(columns) * len(rows):,} tiles of a level of {level.width} x "
                    f"{level.height} at once (the limit is {MAX_TILES:,}); make coarser levels with `pyrtrav convert`"
                )
            for row in rows:
                for column in columns:
                    place = level.index, row, column, shrink if shrink == 1 else _shrink(level, column, row, shrink)
                    touching = wanted.setdefault(place, [])
                    if not touching or touching[-1] is not target:
                        touching.append(target)
    return {
        ((number, column, row), shrink): wanted[number, row, column, shrink]
        for number, row, column, shrink in sorted(wanted)
    }


def _shrink(level: Level, column: int, row: int, shrink: int) -> int:
    """What the tile is shrunk by: not at all where the image ends inside of a shrunk pixel."""
    _, _, width, height = level.tile_at(column, row)
    return 1 if width % shrink or height % shrink else shrink


def tile_range(first: float, last: float, tile: int, limit: int) -> range:
    """The tiles along one axis that share area with ``first .. last``, within the image."""
    if first < 0:
        first = 0
    if last > limit:
        last = limit
    return range(int(first // tile), int(-(-last // tile))) if last > first else range(0)


def _targets(requests: Sequence[Request], patches: Patches, background: tuple[int, ...]) -> Iterator[_Target]:
    """Requests that are averaged on one lattice and lie close share a canvas; others stand alone.

    The cells of one depth overlap by half, so that on their own most of the averaging would be done four times.
    """
    height, width = patches.pixels.shape[1:3]
    block = max(1, math.isqrt(_CANVAS_PIXELS) // max(width, height) - 1) * max(width, height)
    lattices: dict[tuple[float, ...], list[tuple[int, int, Request]]] = {}
    for request in requests:
        if request.is_copy:
            yield _Copied(request, patches, background)
            continue
        box = request.box
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
            for together, box, size in _together(group, (width, height)):
                yield _Averaged(together, box, size, patches, background)


def _together(group: list[Request], size: tuple[int, int]) -> Iterator[tuple[list[Request], Box, tuple[int, int]]]:
    """One canvas around all of the group where that is less work than one for each."""
    left, top = min(request.box.left for request in group), min(request.box.top for request in group)
    step_x, step_y = group[0].box.step_x, group[0].box.step_y
    width = round((max(request.box.left for request in group) - left) / step_x) + size[0]
    height = round((max(request.box.top for request in group) - top) / step_y) + size[1]
    if width * height < len(group) * size[0] * size[1]:
        yield group, Box(left, top, step_x, step_y), (width, height)
    else:
        yield from (([request], request.box, size) for request in group)


def _lattice(position: float, step: float) -> tuple[int, float]:
    """How many whole steps a position is from 0, and the rest as a fraction, free of float noise."""
    steps = math.floor(position / step + _SNAP)
    return steps, round(position / step - steps, 8)
