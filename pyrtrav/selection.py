"""Which candidate cells are looked at: explicit, in every record, and apart from the model that scores them.

Every candidate is an *edge*: a fixation's decision for one of its cells. A rule makes edges eligible; rounds then turn
eligible edges on, best path product first. Without a budget a round is a whole depth; with one it is ``beam`` cells.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError

Select = Literal["sample", "threshold", "topk", "budget", "all", "random", "centre"]
EDGE_SELECTS: tuple[Select, ...] = ("sample", "threshold", "topk", "budget", "all")
"""Those that choose among the cells of a grid."""
SELECTS: tuple[Select, ...] = (*EDGE_SELECTS, "random", "centre")
NEVER = 2.0
"""A confidence that no image reaches."""

NOT_BY_DEPTH = (
    "images leave early after a depth, and under a budget this method does not look depth by depth; "
    "choose a selection (--select threshold or topk) without --budget"
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run looks. Frozen; it stands in every record."""

    select: Select = "threshold"
    """``sample``: Bernoulli draws (the paper; training). ``threshold``: probability above tau. ``topk``: the k most
    probable cells of each fixation. ``budget``: best path products alone. ``all``: every candidate. A chain of looks
    takes ``all`` as what its policy would rather, ``sample`` as a draw of it; in place of the policy ``random`` looks
    anywhere, ``centre`` at the middle."""
    tau: tuple[float, ...] | None = None
    """One threshold per depth of the deciding fixation, 0..1; the last one serves all deeper ones."""
    k: int | None = None
    """Cells a fixation, for ``topk``."""
    budget: int | None = None
    """Fixations allowed for an image, the glance included; caps any selection."""
    beam: int = 16
    """New cells a round under a budget: larger is faster, smaller follows the best path more closely."""
    depth: int = 0
    """Greatest depth; an image that has fewer halvings stops earlier."""
    share_cells: bool = True
    """Read and encode a cell once that two parents attend (needs a whole 1/side)."""
    max_fixations: int = 4096
    """Bound of every run, best first where it bites (then the record says ``truncated``)."""
    stop_at: tuple[float, ...] | None = None
    """One confidence per depth, 0..1 or ``NEVER``: an image whose likeliest class is as probable leaves after it. The
    last one serves all deeper ones."""
    seed: int = 0
    encode_batch: int = 256
    """Patches encoded at once; changes speed and memory only."""

    def __post_init__(self) -> None:
        if self.select not in SELECTS:
            raise ConfigError(f"unknown selection {self.select!r}; known: {', '.join(SELECTS)}")
        if self.select == "topk" and (self.k is None or self.k < 1):
            raise ConfigError("selection `topk` needs k, the number of cells a fixation (1 or more)")
        if self.select == "threshold" and self.depth > 0 and not self.tau:
            raise ConfigError("selection `threshold` needs tau, and this model has none stored; give --tau or --budget")
        if self.tau is not None and not all(0 <= t <= 1 for t in self.tau):
            raise ConfigError(f"tau must lie between 0 and 1, got {self.tau}")
        if self.stop_at is not None and not (self.stop_at and all(0 <= c <= 1 or c == NEVER for c in self.stop_at)):
            raise ConfigError(f"the confidence to stop at must lie between 0 and 1, got {self.stop_at}")
        if self.select == "budget" and self.budget is None:
            raise ConfigError("selection `budget` needs a budget, the number of fixations (1 or more)")
        for name in ("budget", "beam", "max_fixations", "encode_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        if self.depth < 0:
            raise ConfigError(f"depth must be 0 or more, got {self.depth}")

    def tau_at(self, depth: int) -> float:
        """The threshold for decisions of fixations at ``depth``."""
        assert self.tau
        return self.tau[min(depth, len(self.tau) - 1)]

    def confidence_at(self, depth: int) -> float:
        """The confidence with which an image leaves after ``depth``."""
        return self.stop_at[min(depth, len(self.stop_at) - 1)] if self.stop_at else NEVER

    @property
    def allowed(self) -> int:
        """Fixations allowed for an image."""
        return self.max_fixations if self.budget is None else min(self.budget, self.max_fixations)


def eligible_edges(
    settings: Settings, probability: Floats, depth: Ints, parent: Ints, cell: Ints, draws: Floats | None
) -> Bools:
    """Which new edges (edge axis) the rule allows; ``depth`` is the parent's, ``draws`` uniforms for ``sample``.

    Raises:
        ConfigError: the rule is not one for cells.
    """
    if settings.select not in EDGE_SELECTS:
        raise ConfigError(f"selection `{settings.select}` chooses no cells of a grid; choose {', '.join(EDGE_SELECTS)}")
    if settings.select == "sample":
        assert draws is not None
        return draws < probability
    if settings.select == "threshold":
        tau = np.array([settings.tau_at(int(d)) for d in range(int(depth.max(initial=0)) + 1)])
        return probability > tau[depth]
    if settings.select == "topk":
        assert settings.k is not None
        order = np.lexsort((cell, -probability, parent))
        starts = np.flatnonzero(np.r_[True, np.diff(parent[order]) != 0]) if len(order) else np.zeros(0, np.int64)
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        chosen = np.zeros(len(order), np.bool_)
        chosen[order] = rank < settings.k
        return chosen
    return np.ones(len(probability), np.bool_)


def best_first(product: Floats, depth: Ints, row: Ints, column: Ints, parent: Ints) -> Ints:
    """Order of edges by path product, ties by the cell's (depth, row, column), then by parent."""
    return np.lexsort((parent, column, row, depth, -product))


def affordable(order: Ints, place: Ints, attended: Container[int], new_cells: int) -> tuple[list[int], bool]:
    """Take edges in order, but no more than ``new_cells`` places that are not attended yet.

    An edge to a place that is attended already costs nothing. Returns the taken edges, and whether one was left out.
    """
    taken: list[int] = []
    cut = False
    seen: set[int] = set()
    for edge in order.tolist():
        if int(place[edge]) not in attended and int(place[edge]) not in seen:
            if new_cells == 0:
                cut = True
                continue
            new_cells -= 1
            seen.add(int(place[edge]))
        taken.append(edge)
    return taken, cut
