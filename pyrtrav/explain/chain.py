"""Chains: trees whose looks follow each other, as mgnet and gfnet make. People count their glimpses from 1."""

from __future__ import annotations

from typing import Any

from pyrtrav.geometry import covers
from pyrtrav.tree import Node, ParseTree

METHODS = ("mgnet", "gfnet")
"""Methods of which a single look, too, is the first glimpse of a chain."""

MOST_NUMBERED = 50
"""Glimpses of a chain that overlay and strip number; the later ones of a longer chain are outlines alone."""


def is_chain(tree: ParseTree) -> bool:
    """Whether the first look covers the image, and each has no cells and no parent but the one before it."""
    if len(tree.nodes) == 1 and tree.record["model"]["method"] not in METHODS:
        return False
    return covers(tree.nodes[0].region, tree.bounds) and all(
        not node.cells and node.parents == tuple(range(node.id))[-1:] for node in tree.nodes
    )


def number_of(node: Node) -> int:
    """Return the glimpse's place in its chain, from 1."""
    return node.id + 1


def belief_after(tree: ParseTree, node: Node) -> tuple[str, float] | None:
    """Return what was predicted once a step's looks were seen, and its probability; None where the tree has no such."""
    level = _level(tree, node)
    return None if level is None else (str(level["label"]), float(level["probabilities"][level["label"]]))


def probability_after(tree: ParseTree, node: Node) -> float | None:
    """Return how probable the class that is predicted in the end was once a step's looks were seen."""
    level = _level(tree, node)
    return None if level is None else float(level["probabilities"][tree.label])


def _level(tree: ParseTree, node: Node) -> dict[str, Any] | None:
    return next((level for level in tree.record["levels"] if level["depth"] == node.step), None)
