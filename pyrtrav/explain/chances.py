"""How probable each look was: what its parents gave its cell."""

from __future__ import annotations

from pyrtrav.tree import ParseTree


def chances(tree: ParseTree) -> dict[int, float]:
    """Return for each node the largest probability that a parent gave to looking there; none had the glance."""
    found: dict[int, float] = {}
    for node in tree.nodes:
        for cell in node.cells:
            if cell.node is not None:
                found[cell.node] = max(found.get(cell.node, 0.0), cell.probability)
    return found
