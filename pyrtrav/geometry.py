"""Where: regions in level-0 pixels, and the lattice of candidate cells.

There is one coordinate frame: level-0 pixels of the file, ``(x, y, width, height)``, x to the right, y down.
Nothing is ever ``(y, x)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyrtrav.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in level-0 pixels; it may reach outside the image."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def area(self) -> float:
        return self.width * self.height

    def intersects(self, other: Region) -> bool:
        """Whether the two share some area (touching edges share none)."""
        return (
            min(self.right, other.right) > max(self.x, other.x)
            and min(self.bottom, other.bottom) > max(self.y, other.y)
            and self.area > 0
            and other.area > 0
        )

    def intersection(self, other: Region) -> Region:
        """Return the shared rectangle; its area is 0 where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Region(x, y, max(0.0, right - x), max(0.0, bottom - y))

    def as_tuple(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.width, self.height


def covers(region: Region, bounds: Region) -> bool:
    """Return whether the whole image lies in the region, but for rounding."""
    shared = region.intersection(bounds)
    return shared.width > bounds.width * (1 - 1e-6) and shared.height > bounds.height * (1 - 1e-6)


@dataclass(frozen=True, slots=True)
class Grid:
    """The candidate cells of a fixation: ``cells`` x ``cells``, each ``side`` of the parent's side.

    3 and 1/2 are the paper's: half-overlapping cells at offsets 0, 1/4, 1/2 of the parent's side.

    Where 1/side is whole, all cells of a depth lie on one integer lattice: the cell (column, row) of the parent at
    lattice position P lies at ``P / side + (column, row)``, so that a cell reached through two parents is one place.
    """

    cells: int = 3
    side: float = 0.5

    def __post_init__(self) -> None:
        if self.cells < 2:
            raise ConfigError(f"a grid needs at least 2 x 2 cells, got {self.cells}")
        if not 0 < self.side < 1:
            raise ConfigError(f"a cell's side must lie between 0 and 1 of its parent's, got {self.side}")

    @property
    def count(self) -> int:
        return self.cells * self.cells

    @property
    def stride(self) -> float:
        """Distance of neighbouring cells, as a fraction of the parent's side."""
        return (1 - self.side) / (self.cells - 1)

    @property
    def ratio(self) -> int | None:
        """1/side where that is whole, else None: then cells of two parents never coincide."""
        ratio = round(1 / self.side)
        return ratio if math.isclose(ratio * self.side, 1.0, rel_tol=1e-12) else None

    def positions(self, depth: int) -> int:
        """Number of distinct lattice positions along one axis at a depth (1, 3, 7, 15, 31 for the paper's grid)."""
        if self.ratio is None:
            raise ConfigError(f"cells of side {self.side} lie on no lattice: 1/side must be whole")
        last = 0
        for _ in range(depth):
            last = self.ratio * last + self.cells - 1
        return last + 1

    def lattice_region(self, root: Region, depth: int, column: int, row: int) -> Region:
        """Return the cell at a lattice position of a depth; computed from the root, so that equal cells are equal."""
        if depth == 0:
            return root
        scale = self.side**depth
        unit = self.stride * self.side ** (depth - 1)
        return Region(
            root.x + column * unit * root.width,
            root.y + row * unit * root.height,
            root.width * scale,
            root.height * scale,
        )


def root_region(bounds: Region, base_resolution: int) -> Region:
    """Return the square glance: side max(longest side, base resolution), the image centred in it.

    Nothing is squashed and a small image is not upsampled; what lies outside the image is background.
    """
    side = float(max(bounds.width, bounds.height, base_resolution))
    return Region(
        bounds.x + (bounds.width - side) / 2,
        bounds.y + (bounds.height - side) / 2,
        side,
        side,
    )


def halvings(root: Region, base_resolution: int, side: float = 0.5, finest_downsample: float = 1.0) -> int:
    """Return the greatest depth whose patches are not finer than ``finest_downsample`` level-0 pixels a pixel."""
    downsample = root.width / base_resolution
    depth = 0
    # The tolerance lets a root of exactly 2^d patches reach downsample 1.
    while downsample * side >= finest_downsample * (1 - 1e-9):
        downsample *= side
        depth += 1
    return depth
