"""The tree as an icicle: every node a box beside its parent's, as tall as what it led to."""

from __future__ import annotations

from dataclasses import dataclass

from pyrtrav.tree import Node, ParseTree


@dataclass(frozen=True, slots=True)
class Box:
    """A node's place in the icicle."""

    level: int
    """Steps from the glance, 0 for it."""
    top: float
    bottom: float
    """In leaves, counted from the top."""


def icicle(tree: ParseTree) -> list[Box]:
    """Return each node's box, the nodes in the tree's order.

    A node that several parents led to stands beside the one on its best path. Siblings stand in the order of their
    scores, the best on top.
    """
    children: dict[int | None, list[Node]] = {}
    for node in tree.nodes:
        children.setdefault(_best_parent(tree, node), []).append(node)
    for siblings in children.values():
        siblings.sort(key=lambda node: (-node.score, node.id))
    boxes: dict[int, Box] = {}
    leaves = _leaves(tree, children)
    # A stack, not recursion: a chain may be deeper than Python allows.
    todo: list[tuple[int | None, int, float]] = [(None, 0, 0.0)]
    while todo:
        parent, level, top = todo.pop()
        for node in children.get(parent, ()):
            boxes[node.id] = Box(level, top, top + leaves[node.id])
            todo.append((node.id, level + 1, top))
            top += leaves[node.id]
    return [boxes[node.id] for node in tree.nodes]


def _best_parent(tree: ParseTree, node: Node) -> int | None:
    """The parent whose score times the cell's probability is largest, which is what made the node's score."""
    if not node.parents:
        return None

    def path(parent: int) -> float:
        above = tree.nodes[parent]
        return above.score * max((cell.probability for cell in above.cells if cell.node == node.id), default=0.0)

    return max(node.parents, key=path)


def _leaves(tree: ParseTree, children: dict[int | None, list[Node]]) -> dict[int, int]:
    """How many ends each node led to, itself where it led nowhere. Parents come before their children."""
    leaves: dict[int, int] = {}
    for node in reversed(tree.nodes):
        leaves[node.id] = sum(leaves[child.id] for child in children.get(node.id, ())) or 1
    return leaves
