"""Trees that no model made: regions, scores and contributions as a test wants them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrtrav.geometry import Grid, Region, root_region
from pyrtrav.pyramid import Pyramid
from pyrtrav.tree import Cell, Node, ParseTree

BASE = 64


def record(image: str, fixations: int, label: str = "lesion", probability: float = 0.97) -> dict[str, Any]:
    zeros = dict.fromkeys(("tiles_decoded", "pixels_decoded", "pixels_encoded", "macs"), 0)
    settings = dict.fromkeys(("tau", "k", "budget", "mpp"))
    return {
        "schema": "pyrtrav.result/1",
        "version": "0.1.0",
        "image": image,
        "input": {"path": f"/{image}", "fingerprint": None},
        "status": "ok",
        "prediction": {"label": label, "index": 0, "probabilities": {label: probability}},
        "levels": [],
        "cost": zeros
        | {"fixations": fixations, "tiles_distinct": 61, "tiles_total": 41310, "bytes_read": 812331}
        | {"truncated": False, "seconds": {}},
        "settings": settings
        | {"select": "topk", "beam": 16, "depth": 5, "share_cells": True, "seed": 0}
        | {"max_fixations": 4096, "device": "cpu"},
        "model": {"method": "topdown", "encoder": "residual", "sha256": "0" * 64},
    }


def as_tree(pyramid: Pyramid, nodes: list[Node], image: str = "slide.svs", **prediction: Any) -> ParseTree:
    return ParseTree(
        record(image, len(nodes), **prediction),
        pyramid.width,
        pyramid.height,
        pyramid.mpp,
        pyramid.bounds,
        pyramid.background,
        tuple(nodes),
    )


def look(number: int, depth: int, region: Region, *, base: int = BASE, score: float = 0.5) -> Node:
    """A node without parents or cells, as mgnet, gfnet, fcn and mil make."""
    return Node(number, (), depth, depth, region, region.width / base, score, None, ())


def grown_tree(pyramid: Pyramid, depth: int, seed: int = 0, *, keep: float = 0.4, most: int = 120) -> ParseTree:
    """A plausible tree of the half-overlapping grid: a cell is attended with probability ``keep``."""
    rng, grid = np.random.default_rng(seed), Grid()
    root = root_region(pyramid.bounds, BASE)
    places = [(0, 0, 0)]
    scores = [1.0]
    parents: list[list[int]] = [[]]
    cells: list[list[Cell]] = [[]]
    number = 0
    while number < len(places):
        at_depth, column, row = places[number]
        for i in range(9 if at_depth < depth else 0):
            place = at_depth + 1, 2 * column + i % 3, 2 * row + i // 3
            if not grid.lattice_region(root, *place).intersects(pyramid.bounds):
                continue
            probability, child = float(rng.random()), None
            if probability > 1 - keep and (place in places or len(places) < most):
                if place not in places:
                    places, scores = [*places, place], [*scores, 0.0]
                    parents, cells = [*parents, []], [*cells, []]
                child = places.index(place)
                parents[child].append(number)
                scores[child] = max(scores[child], scores[number] * probability)
            cells[number].append(Cell(i % 3, i // 3, probability, child))
        number += 1
    regions = [grid.lattice_region(root, *place) for place in places]
    nodes = [
        Node(i, tuple(parents[i]), p[0], p[0], r, r.width / BASE, scores[i], None, tuple(cells[i]))
        for i, (p, r) in enumerate(zip(places, regions, strict=True))
    ]
    return as_tree(pyramid, nodes)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random blocks: any shift shows."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def with_contributions(tree: ParseTree, seed: int = 0) -> ParseTree:
    """The tree with contributions of both signs; the glance has none."""
    values = np.random.default_rng(seed).normal(0, 0.4, len(tree.nodes))
    nodes = [replace(n, contribution=float(v) if n.parents else None) for n, v in zip(tree.nodes, values, strict=True)]
    return replace(tree, nodes=tuple(nodes))


def box_where(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
