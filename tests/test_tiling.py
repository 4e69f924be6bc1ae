"""The tiles of a depth, and which of them are background."""

import numpy as np
import pytest

from pyrtrav.colours import Colours
from pyrtrav.geometry import Grid, Region, root_region
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tiling import background_share, tiles_of, without_background
from pyrtrav.training.augment import View


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (3, 200), (129, 128)])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_tiles_are_the_cells_that_hold_image_and_cover_it_once(size: tuple[int, int], depth: int) -> None:
    bounds = Region(7, -3, *size)
    root = root_region(bounds, 16)
    lattice = Grid(2, 0.5)
    wanted = [
        (column, row)
        for row in range(2**depth)
        for column in range(2**depth)
        if lattice.lattice_region(root, depth, column, row).intersects(bounds)
    ]
    tiles = tiles_of(bounds, root, depth)
    assert list(zip(tiles.column.tolist(), tiles.row.tolist(), strict=True)) == wanted
    regions = [Region(*region) for region in tiles.region.tolist()]
    assert regions == [lattice.lattice_region(root, depth, column, row) for column, row in wanted]
    assert sum(region.intersection(bounds).area for region in regions) == pytest.approx(bounds.area)


def with_spot() -> np.ndarray:
    """Glass with a dark square in the third tile of the second row, of 4 x 4 tiles of 16 pixels."""
    pixels = np.full((64, 64, 3), 244, np.uint8)
    pixels[16:32, 32:40] = 90
    return pixels


def test_the_share_of_background_is_that_of_the_pixels() -> None:
    root = Region(0, 0, 64, 64)
    share = background_share(ArrayPyramid(with_spot()), root, 2)
    wanted = np.ones((4, 4))
    wanted[1, 2] = 0.5
    assert (share == wanted).all()


def test_the_background_is_found_through_a_view_of_other_colours() -> None:
    """A tile follows the turn, and what a view paints changes no background."""
    image = ArrayPyramid(with_spot())
    view = View(image, 16, 1, False, Colours(value=0.6 * np.eye(3, 4)))
    share = background_share(view, view.frame, 2)
    assert (share == np.rot90(background_share(image, view.frame, 2))).all()
    assert share.min() == 0.5


def test_only_tiles_with_content_are_kept_but_never_none() -> None:
    root = Region(0, 0, 64, 64)
    tiles = tiles_of(root, root, 2)
    share = background_share(ArrayPyramid(with_spot()), root, 2)
    for most, kept in ((0.6, [(2, 1)]), (0.5, [(2, 1)]), (1.0, [(2, 1)])):
        left = without_background(tiles, share, most)
        assert list(zip(left.column.tolist(), left.row.tolist(), strict=True)) == kept
    blank = without_background(tiles, np.ones((4, 4)), 0.5)
    assert len(blank.row) == 1


def test_what_lies_beside_the_image_counts_as_background() -> None:
    image = ArrayPyramid(np.full((32, 64, 3), 90, np.uint8))
    share = background_share(image, root_region(image.bounds, 16), 1)
    assert (share == 0.5).all()
