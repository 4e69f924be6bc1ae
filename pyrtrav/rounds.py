"""What is looked at next: a round turns edges on, all that may be, or the best that a budget affords."""

from typing import NamedTuple

import numpy as np

from pyrtrav.selection import Floats, Ints, Settings, affordable, best_first
from pyrtrav.trace import Trace


class Fixations(NamedTuple):
    """Places that will be looked at, on the fixation axis, and the trace's edges that lead there."""

    image: Ints
    depth: Ints
    column: Ints
    row: Ints
    region: Floats
    edge: Ints
    """Edges of the trace, on an axis of their own."""
    leads_to: Ints
    """For each of them its place on the fixation axis."""


def first_look(trace: Trace) -> Fixations:
    """Return the glance at each image."""
    count = trace.images
    zeros, none = np.zeros(count, np.int64), np.zeros(0, np.int64)
    region = np.array([root.as_tuple() for root in trace.roots]).reshape(count, 4)
    return Fixations(np.arange(count), zeros, zeros, zeros, region, none, none)


def led_from(trace: Trace, fixations: Fixations) -> tuple[Ints, Ints]:
    """Return the parent that leads to each fixation, -1 for none, and which of its cells each is."""
    parent, cell = np.full(len(fixations.image), -1), np.zeros(len(fixations.image), np.int64)
    parent[fixations.leads_to] = trace.parent[fixations.edge]
    cell[fixations.leads_to] = trace.cell[fixations.edge]
    return parent, cell


def choose(trace: Trace, settings: Settings, *, lattice: bool) -> Fixations:
    """Turn edges on for one round; returns the new places. Edges to attended cells are turned on at no cost."""
    pending = np.flatnonzero(trace.eligible & ~trace.on & trace.alive[trace.image[trace.parent]])
    if settings.share_cells and lattice:
        where, attended = trace.cell_place(), trace.fixation_place()
    else:
        # Every edge leads to a place of its own.
        where, attended = np.arange(len(trace.parent)), pending[:0]
    image = trace.image[trace.parent[pending]]
    new, first = np.unique(where[pending], return_index=True)
    fresh = np.bincount(image[first[~np.isin(new, attended)]], minlength=trace.images)
    left = settings.allowed - np.bincount(trace.image, minlength=trace.images)
    whole = (fresh <= left) & (settings.budget is None)
    chosen = [pending[whole[image]]]
    natural = [
        image[whole[image]],
        trace.cell_row[chosen[0]],
        trace.cell_column[chosen[0]],
        trace.parent[chosen[0]],
    ]
    chosen[0] = chosen[0][np.lexsort(natural[::-1])]
    if not whole[image].all():
        score = trace.scores()
        for number in np.unique(image[~whole[image]]).tolist():
            own = pending[image == number]
            chosen.append(_best(trace, settings, number, own, where, attended, score, int(left[number])))
    return _new_fixations(trace, np.concatenate(chosen), where, attended)


def _best(
    trace: Trace,
    settings: Settings,
    image: int,
    edges: Ints,
    where: Ints,
    attended: Ints,
    score: Floats,
    left: int,
) -> Ints:
    """The edges of one image that a round takes when not all can be: best path products first."""
    parent = trace.parent[edges]
    product = score[parent] * trace.probability[edges]
    row, column = trace.cell_row[edges], trace.cell_column[edges]
    order = best_first(product, trace.depth[parent] + 1, row, column, parent)
    round_size = left if settings.budget is None else min(settings.beam, left)
    taken, cut = affordable(order, where[edges], set(attended.tolist()), round_size)
    if cut and round_size == left:
        # Nothing more can be afforded: what is left stays off. Under a budget alone that is no truncation.
        trace.eligible[np.delete(edges, taken)] = False
        trace.cut[np.delete(edges, taken)] = True
        by_budget = settings.select == "budget" and settings.budget == settings.allowed
        trace.truncated[image] |= not by_budget
    return edges[taken]


def _new_fixations(trace: Trace, edges: Ints, where: Ints, attended: Ints) -> Fixations:
    """Edges to attended places are on at once; the others make fixations, in the order of their first edges."""
    order = np.argsort(attended)
    slot = np.searchsorted(attended, where[edges], sorter=order)
    index = order[np.minimum(slot, len(order) - 1)] if len(order) else np.zeros(len(edges), np.int64)
    known = attended[index] == where[edges] if len(order) else np.zeros(len(edges), np.bool_)
    trace.child[edges[known]] = index[known]
    edges = edges[~known]
    _, first, group = np.unique(where[edges], return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    rank = np.argsort(by_first)
    leading = edges[first[by_first]]
    parent = trace.parent[leading]
    return Fixations(
        trace.image[parent],
        trace.depth[parent] + 1,
        trace.cell_column[leading],
        trace.cell_row[leading],
        trace.cell_region[leading],
        edges,
        rank[group],
    )
