"""What each look added to the prediction, exactly, without reading a pixel again.

The contribution of a fixation is the predicted class's log-probability minus what it would be with this fixation's
vector V'_n zero in every grid that holds it. What was looked at stays as it was: only what is above it changes, so a
contribution costs one application of (7) for each of its ancestors.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from pyrtrav.selection import Ints
from pyrtrav.trace import Trace

AT_ONCE = 512
"""Fixations whose contributions are computed together, which bounds the memory."""


@runtime_checkable
class Merging(Protocol):
    """What of the model merges from the bottom up."""

    classify: nn.Linear

    def merged(self, trace: Trace, depth: int) -> Tensor: ...

    def grids(self, trace: Trace, values: Tensor, edges: Ints) -> tuple[Ints, Tensor]: ...

    def fuse(self, own: Tensor, grids: Tensor) -> Tensor: ...


class Changed(NamedTuple):
    """Fixations whose V' differs because another one is zero, and what it is then."""

    without: Ints
    fixation: Ints
    value: Tensor
    """(pair, channel)"""


def contributions(model: Merging, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
    """Return the contribution of every fixation of an image to a class, in nats; None for the glance.

    Args:
        model: what looked.
        trace: of a run that stops at ``depth``.
        image: in the trace.
        depth: deeper fixations say nothing.
        label: the predicted class.
    """
    own = trace.fixations_of(image)
    values = model.merged(trace, depth)
    edges = np.flatnonzero(trace.on & (trace.image[trace.parent] == image) & (trace.depth[trace.parent] < depth))
    found: dict[int, float] = {}
    below = own[(trace.depth[own] > 0) & (trace.depth[own] <= depth)]
    whole = _log_probability(model, values[own[:1]], label)
    for start in range(0, len(below), AT_ONCE):
        some = below[start : start + AT_ONCE]
        without = _glances_without(model, trace, values, edges, some)
        found |= zip(some.tolist(), (whole - _log_probability(model, without, label)).tolist(), strict=True)
    return [found.get(fixation) for fixation in own.tolist()]


def _log_probability(model: Merging, glance: Tensor, label: int) -> Tensor:
    return torch.log_softmax(model.classify(glance).double(), dim=1)[:, label]


def _glances_without(model: Merging, trace: Trace, values: Tensor, edges: Ints, fixations: Ints) -> Tensor:
    """V' of the glance with each of the fixations zero, one row for each, in order."""
    depth = trace.depth[fixations]
    none = np.zeros(0, np.int64)
    changed = Changed(none, none, values[:0])
    for level in reversed(range(int(depth.max()))):
        zero = fixations[depth == level + 1]
        changed = Changed(
            np.concatenate([changed.without, zero]),
            np.concatenate([changed.fixation, zero]),
            torch.cat([changed.value, values.new_zeros(len(zero), values.shape[1])]),
        )
        changed = _parents_of(model, trace, values, edges[trace.depth[trace.parent[edges]] == level], changed)
    return changed.value[torch.from_numpy(np.searchsorted(changed.without, fixations)).to(values.device)]


def _parents_of(model: Merging, trace: Trace, values: Tensor, edges: Ints, changed: Changed) -> Changed:
    """What changes one level up; sorted by ``without``. ``edges`` are those of the level that are on."""
    device = values.device
    parents, grids = model.grids(trace, values, edges)
    edges = edges[np.argsort(trace.child[edges], kind="stable")]
    first = np.searchsorted(trace.child[edges], changed.fixation, "left")
    count = np.searchsorted(trace.child[edges], changed.fixation, "right") - first
    # One row for each (changed fixation, edge that leads to it).
    pair = np.repeat(np.arange(len(count)), count)
    edge = edges[np.repeat(first, count) + np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)]
    above = np.stack([changed.without[pair], trace.parent[edge]])
    (without, parent), row = np.unique(above, axis=1, return_inverse=True)
    own = torch.from_numpy(np.searchsorted(parents, parent)).to(device)
    cells = grids.shape[1]
    slots = torch.from_numpy(row.reshape(-1) * cells + trace.cell[edge]).to(device)
    held = grids[own].flatten(0, 1).index_copy(0, slots, changed.value[torch.from_numpy(pair).to(device)])
    # A V'_n of this level is V_n still in the trace: nothing has been merged into it there.
    coarse = trace.vector[torch.from_numpy(parent).to(device)]
    return Changed(without, parent, model.fuse(coarse, held.view(len(parent), cells, -1)))
