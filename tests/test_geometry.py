"""Regions, and the lattice on which candidate cells lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid, Region, halvings, root_region

coordinates = st.floats(-1e6, 1e6)
sizes = st.floats(1e-3, 1e6)
regions = st.builds(Region, coordinates, coordinates, sizes, sizes)
lattices = st.sampled_from([Grid(), Grid(2, 0.5), Grid(5, 0.5), Grid(3, 1 / 3), Grid(4, 0.25)])


@given(regions, regions)
def test_intersection(one: Region, other: Region) -> None:
    shared = one.intersection(other)
    assert shared == other.intersection(one)
    assert shared.area >= 0
    assert (shared.area > 0) == one.intersects(other) or min(shared.width, shared.height) < 1e-9
    if shared.area > 0:
        assert shared.x >= max(one.x, other.x)
        assert shared.right == pytest.approx(min(one.right, other.right), abs=1e-9 * 2e6)
        assert shared.bottom == pytest.approx(min(one.bottom, other.bottom), abs=1e-9 * 2e6)


@given(regions)
def test_a_region_shares_nothing_with_its_neighbour(region: Region) -> None:
    assert region.intersects(region)
    beside = Region(region.right, region.y, region.width, region.height)
    assert not region.intersects(beside)
    assert region.intersection(beside).area == 0
    assert region.as_tuple() == (region.x, region.y, region.width, region.height)


def test_the_papers_lattice() -> None:
    grid = Grid()
    assert (grid.count, grid.stride, grid.ratio) == (9, 0.25, 2)
    assert [grid.positions(depth) for depth in range(5)] == [1, 3, 7, 15, 31]
    assert grid.positions(4) ** 2 == 961
    root = Region(0, 0, 1024, 1024)
    assert grid.lattice_region(root, 1, 2, 1) == Region(512, 256, 512, 512)
    assert grid.lattice_region(root, 2, 0, 6) == Region(0, 768, 256, 256)


@given(lattices, st.integers(0, 3), st.data())
def test_a_cell_lies_in_its_parent(grid: Grid, depth: int, data: st.DataObject) -> None:
    root = Region(-37.5, 12.25, 3000, 3000)
    assert grid.ratio is not None
    place = [data.draw(st.integers(0, grid.positions(depth) - 1)) for _ in "xy"]
    cell = [data.draw(st.integers(0, grid.cells - 1)) for _ in "xy"]
    parent = grid.lattice_region(root, depth, *place)
    child = grid.lattice_region(root, depth + 1, *(grid.ratio * p + c for p, c in zip(place, cell, strict=True)))
    assert child.width == pytest.approx(parent.width * grid.side)
    assert child.x - parent.x == pytest.approx(cell[0] * grid.stride * parent.width, abs=1e-6)
    assert child.y - parent.y == pytest.approx(cell[1] * grid.stride * parent.height, abs=1e-6)
    assert child.right <= parent.right + 1e-6


@given(lattices, st.integers(1, 3))
def test_a_cell_that_two_parents_reach_is_one_region(grid: Grid, depth: int) -> None:
    """The positions that are reached are exactly the lattice's, and each has one region, bit for bit."""
    root = Region(3.1, -8.7, 977, 977)
    assert grid.ratio is not None
    reached = {0}
    for _ in range(depth):
        reached = {grid.ratio * place + cell for place in reached for cell in range(grid.cells)}
    assert reached == set(range(grid.positions(depth)))
    places = {place: grid.lattice_region(root, depth, place, 0) for place in reached}
    assert len(set(places.values())) == len(places)


def test_cells_that_lie_on_no_lattice() -> None:
    grid = Grid(3, 0.4)
    assert grid.ratio is None
    with pytest.raises(ConfigError, match="1/side must be whole"):
        grid.positions(2)
    for cells, side in ((1, 0.5), (3, 0), (3, 1), (3, 1.5)):
        with pytest.raises(ConfigError):
            Grid(cells, side)


@given(regions, st.integers(1, 512))
def test_the_root_is_a_square_with_the_image_in_its_middle(bounds: Region, base: int) -> None:
    root = root_region(bounds, base)
    assert root.width == root.height == max(bounds.width, bounds.height, base)
    assert root.x + root.width / 2 == pytest.approx(bounds.x + bounds.width / 2, abs=1e-6)
    assert root.y + root.height / 2 == pytest.approx(bounds.y + bounds.height / 2, abs=1e-6)


def test_halvings_stop_before_upsampling() -> None:
    def square(side: float) -> Region:
        return Region(0, 0, side, side)

    assert [halvings(square(side), 64) for side in (64, 127, 128, 255, 256, 1024)] == [0, 0, 1, 1, 2, 4]
    assert halvings(square(1024), 64, finest_downsample=4) == 2
    assert halvings(square(576), 64, side=1 / 3) == 2
    for base, depth in itertools.product((28, 224, 300), range(12)):
        assert halvings(square(base * 2.0**depth), base) == depth
