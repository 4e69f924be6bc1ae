"""How often a policy that knows nothing shows a sign, if it attends as many cells at every depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes_arms import BASE
from benchmarks.scenes_data import Scene
from pyrtrav.geometry import Grid, Region, root_region
from pyrtrav.methods.topdown.guidance import asked_for

SCENE = Region(0, 0, 1360, 800)
TREES = 2000

Places = NDArray[np.bool_]
"""(tree, row, column) of a depth's lattice."""


def places_of(depth: int) -> tuple[list[Region], int]:
    """Every cell of a depth, row by row, and how many there are along one side."""
    grid, root = Grid(), root_region(SCENE, BASE)
    side = grid.positions(depth)
    return [grid.lattice_region(root, depth, c, r) for r in range(side) for c in range(side)], side


def random_trees(cells: Sequence[float], seed: int = 0) -> Places:
    """Return the deepest cells of random traversals that attend ``cells`` at depths 1, 2, ... on average.

    At each depth every edge is on with one probability, which is found by bisection.
    """
    random, grid = np.random.default_rng(seed), Grid()
    here: Places = np.ones((TREES, 1, 1), np.bool_)
    for depth, wanted in enumerate(cells, 1):
        regions, side = places_of(depth)
        holds = np.array([region.intersects(SCENE) for region in regions]).reshape(side, side)
        above = here.shape[1]
        # For every edge a uniform number, and for every cell the least of those of its edges.
        least = np.full((TREES, side, side), 2.0)
        for row in range(grid.cells):
            for column in range(grid.cells):
                drawn = np.where(here, random.random(here.shape), 2.0)
                part = least[:, row : row + 2 * above : 2, column : column + 2 * above : 2]
                np.minimum(part, drawn, out=part)
        least[:, ~holds] = 2.0
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if (least < middle).sum() < wanted * TREES else (low, middle)
        here = least < high
    return here


def chance_of(signs: Sequence[Region], deepest: Places) -> list[float]:
    """Return for each sign in which share of the traversals a deepest cell shows it."""
    depth = {Grid().positions(depth): depth for depth in range(9)}[deepest.shape[1]]
    regions, side = places_of(depth)
    cells = np.array([region.as_tuple() for region in regions], np.float64)
    found = []
    for sign in signs:
        asked = asked_for(cells, np.zeros(len(cells), np.int64), [[sign]]).reshape(side, side)
        found.append(float(deepest[:, asked].any(1).mean()))
    return found


def random_share(scenes: Sequence[Scene], cells: Sequence[float], *, deciding: bool) -> float:
    """Share of the signs (the deciding ones alone, or all) that a random policy of these cells shows."""
    signs = [sign.region for scene in scenes for sign in scene.signs if sign.deciding or not deciding]
    return float(np.mean(chance_of(signs, random_trees(cells)))) if signs else float("nan")
