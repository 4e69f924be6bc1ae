"""Where the cells of fixations lie, and which of them hold image."""

import numpy as np

from pyrtrav.geometry import Grid
from pyrtrav.selection import Bools, Floats, Ints
from pyrtrav.trace import Trace


def cells_of(grid: Grid, trace: Trace, parents: Ints, cell: Ints) -> tuple[Ints, Ints, Floats]:
    """Lattice positions and regions (edge axis) of cells; on a lattice equal places have equal regions."""
    column, row = cell % grid.cells, cell // grid.cells
    ratio = grid.ratio
    if ratio is None:
        # No lattice: the positions only number the cells, and regions follow the parent's.
        place_column = trace.column[parents] * grid.cells + column
        place_row = trace.row[parents] * grid.cells + row
        x, y, width, height = trace.region[parents].T
        region = np.stack(
            [
                x + column * grid.stride * width,
                y + row * grid.stride * height,
                width * grid.side,
                height * grid.side,
            ],
            axis=1,
        )
        return place_column, place_row, region
    place_column, place_row = trace.column[parents] * ratio + column, trace.row[parents] * ratio + row
    roots = np.array([root.as_tuple() for root in trace.roots])[trace.image[parents]]
    depth = trace.depth[parents] + 1
    unit = grid.stride * grid.side ** (depth - 1.0)
    scale = grid.side ** depth.astype(np.float64)
    region = np.stack(
        [
            roots[:, 0] + place_column * unit * roots[:, 2],
            roots[:, 1] + place_row * unit * roots[:, 3],
            roots[:, 2] * scale,
            roots[:, 3] * scale,
        ],
        axis=1,
    )
    return place_column, place_row, region


def holds_image(region: Floats, bounds: Floats) -> Bools:
    """Whether cells share area with the image; those that do not are no candidates."""
    x, y, width, height = region.T
    left, top, right, bottom = bounds.T
    # What rounding alone shares is nothing.
    inside: Bools = (np.minimum(x + width, right) - np.maximum(x, left) > 1e-6 * width) & (
        np.minimum(y + height, bottom) - np.maximum(y, top) > 1e-6 * height
    )
    return inside
