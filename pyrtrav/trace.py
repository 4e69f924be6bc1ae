"""What a traversal did, flat and never padded: losses, trees and costs read only this.

All fixations of all images stand on one axis with an ``image`` index beside it, and so do all edges (a fixation's
decisions for its cells). Where things are is bookkeeping and lives in NumPy arrays on the host; what is learned from
(vectors and logits) lives in tensors on the device.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Region
from pyrtrav.ranks import whole_mean
from pyrtrav.selection import Bools, Floats, Ints


class Trace:
    """The fixations and edges of a batch of images. It grows step by step and is read afterwards."""

    def __init__(self, roots: Sequence[Region], device: torch.device) -> None:
        self.roots = list(roots)
        self.device = device
        self.errors: list[PyramidError | None] = [None] * len(roots)
        """Per image: why it left the traversal."""
        self.truncated = np.zeros(len(roots), np.bool_)
        self.seconds = {"read": 0.0, "encode": 0.0}
        self.left: Ints = np.full(len(roots), -1)
        """Per image: the depth after which it left because it was sure enough; -1 where it did not."""
        self.judged = False
        """Whether a belief was formed after each depth on the way."""
        self.bytes_read: list[list[int | None]] = []
        """After each step, per image: compressed bytes read so far; None where that is unknown."""

        self.image: Ints = np.zeros(0, np.int64)
        self.depth: Ints = np.zeros(0, np.int64)
        self.step: Ints = np.zeros(0, np.int64)
        self.column: Ints = np.zeros(0, np.int64)
        self.row: Ints = np.zeros(0, np.int64)
        self.region: Floats = np.zeros((0, 4))
        self._vectors: list[Tensor] = []

        self.parent: Ints = np.zeros(0, np.int64)
        self.cell: Ints = np.zeros(0, np.int64)
        self.cell_column: Ints = np.zeros(0, np.int64)
        self.cell_row: Ints = np.zeros(0, np.int64)
        self.cell_region: Floats = np.zeros((0, 4))
        self.probability: Floats = np.zeros(0)
        self.eligible: Bools = np.zeros(0, np.bool_)
        self.child: Ints = np.zeros(0, np.int64)
        """The fixation that an edge led to; -1 where it is off."""
        self.cut: Bools = np.zeros(0, np.bool_)
        """Edges that were to be on, but more fixations than that are not followed: nothing was decided there."""
        self._logits: list[Tensor] = []

        self.expanded: Ints = np.zeros(0, np.int64)
        """Fixations, ascending, of which ``map`` holds the maps; none where no gradient is wanted."""
        self._maps: list[tuple[Tensor, Ints]] = []

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time that the block takes as the phase's, ``read`` or ``encode``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begun

    # Growing.

    def add_fixations(
        self, image: Ints, depth: Ints, step: int, column: Ints, row: Ints, region: Floats, vector: Tensor
    ) -> Ints:
        """Append fixations; returns their indices."""
        start = len(self.image)
        self.image = np.concatenate([self.image, image])
        self.depth = np.concatenate([self.depth, depth])
        self.step = np.concatenate([self.step, np.full(len(image), step)])
        self.column = np.concatenate([self.column, column])
        self.row = np.concatenate([self.row, row])
        self.region = np.concatenate([self.region, region])
        self._vectors.append(vector)
        return np.arange(start, len(self.image))

    def add_edges(
        self,
        parent: Ints,
        cell: Ints,
        column: Ints,
        row: Ints,
        region: Floats,
        logit: Tensor,
        probability: Floats,
        eligible: Bools,
    ) -> None:
        """Append candidate edges, all off."""
        self.parent = np.concatenate([self.parent, parent])
        self.cell = np.concatenate([self.cell, cell])
        self.cell_column = np.concatenate([self.cell_column, column])
        self.cell_row = np.concatenate([self.cell_row, row])
        self.cell_region = np.concatenate([self.cell_region, region])
        self.probability = np.concatenate([self.probability, probability])
        self.eligible = np.concatenate([self.eligible, eligible])
        self.child = np.concatenate([self.child, np.full(len(parent), -1)])
        self.cut = np.concatenate([self.cut, np.zeros(len(parent), np.bool_)])
        self._logits.append(logit)

    def until(self, depth: int) -> "Trace":
        """The part of the trace that a run down to ``depth`` sees: its fixations, and the decisions above it."""
        kept = np.flatnonzero(self.depth <= depth)
        edges = self.decisions(depth)
        number = np.full(len(self.image) + 1, -1)
        number[kept] = np.arange(len(kept))
        part = Trace(self.roots, self.device)
        part.errors, part.truncated = list(self.errors), self.truncated.copy()
        part.left, part.judged = self.left.copy(), self.judged
        for name in ("image", "depth", "step", "column", "row", "region"):
            setattr(part, name, getattr(self, name)[kept])
        for name in ("cell", "cell_column", "cell_row", "cell_region", "probability", "eligible", "cut"):
            setattr(part, name, getattr(self, name)[edges])
        # A child of -1 is no fixation and stays -1.
        part.parent, part.child = number[self.parent[edges]], number[self.child[edges]]
        part._vectors, part._logits = [self.vector[self._tensor(kept)]], [self.logit[self._tensor(edges)]]
        return part

    def with_vectors(self, vector: Float[Tensor, "fixation channel"]) -> "Trace":
        """The same looks, had the encoder made other vectors of them."""
        other = copy(self)
        other._vectors = [vector]
        return other

    def keep_maps(self, fixations: Ints, maps: Tensor, index: Ints) -> None:
        """Keep the maps ``maps[index]`` of expanded fixations, for losses that train what the policy sees."""
        self.expanded = np.concatenate([self.expanded, fixations])
        self._maps.append((maps, index))

    # Reading.

    @property
    def images(self) -> int:
        return len(self.roots)

    @property
    def alive(self) -> Bools:
        """Images without an error."""
        return np.array([error is None for error in self.errors], np.bool_)

    @property
    def going(self) -> Bools:
        """Images without an error that did not leave."""
        return self.alive & (self.left < 0)

    @property
    def on(self) -> Bools:
        """Edges that led to a fixation."""
        return self.child >= 0

    @property
    def vector(self) -> Float[Tensor, "fixation channel"]:
        return self._vectors[0] if len(self._vectors) == 1 else torch.cat(self._vectors)

    @property
    def logit(self) -> Float[Tensor, " edge"]:
        if not self._logits:
            return torch.zeros(0, device=self.device)
        return self._logits[0] if len(self._logits) == 1 else torch.cat(self._logits)

    @property
    def map(self) -> Float[Tensor, "expanded channel row column"]:
        return torch.cat([take_rows(maps, self._tensor(index)) for maps, index in self._maps])

    def fixations_of(self, image: int) -> Ints:
        return np.flatnonzero(self.image == image)

    def cell_place(self) -> Ints:
        """One number for every distinct (image, depth, row, column) that an edge could lead to, on the edge axis."""
        return place(self.image[self.parent], self.depth[self.parent] + 1, self.cell_row, self.cell_column)

    def fixation_place(self) -> Ints:
        """The same number for every fixation."""
        return place(self.image, self.depth, self.row, self.column)

    def scores(self) -> Floats:
        """Per fixation the largest product of probabilities along a path of edges that are on; 1 for the glance."""
        score = np.where(self.depth == 0, 1.0, 0.0)
        on = np.flatnonzero(self.on)
        for depth in range(int(self.depth.max(initial=0))):
            edges = on[self.depth[self.parent[on]] == depth]
            np.maximum.at(score, self.child[edges], score[self.parent[edges]] * self.probability[edges])
        return score

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def decisions(self, depth: int) -> Ints:
        """The edges decided by fixations above ``depth``: those of a run that stops there."""
        return np.flatnonzero(self.depth[self.parent] < depth)

    def _decided(self, depth: int) -> Ints:
        edges = self.decisions(depth)
        return edges[~self.cut[edges]]

    def decision_logit(self, depth: int, images: Bools | None = None) -> Float[Tensor, " edge"]:
        """The logits of those edges, of some images; by default of those without an error."""
        edges = self._decided(depth)
        counted = self.alive if images is None else images
        return self.logit[self._tensor(edges[counted[self.image[self.parent[edges]]]])]

    def decision_log_prob(self, depth: int) -> Float[Tensor, " image"]:
        """log p(l | x) of a run down to ``depth``: equation (8a), over the edges of distinct fixations."""
        edges = self._decided(depth)
        logit = self.logit[self._tensor(edges)]
        on = self._tensor(self.on[edges])
        # log sigmoid(z) where on, log(1 - sigmoid(z)) = log sigmoid(-z) where off, without cancellation.
        log_prob = torch.nn.functional.logsigmoid(torch.where(on, logit, -logit))
        return self._sum_by_image(log_prob, self.image[self.parent[edges]])

    def expected_cells(self, depth: int, *, shared: bool) -> Float[Tensor, " image"]:
        """Expected number of attended cells given where the run went: equation (14).

        Shared, a cell counts once however many parents hold it: the sum over distinct candidate cells of one minus the
        product over their expanded parents of (1 - p).
        """
        edges = self.decisions(depth)
        logit = self.logit[self._tensor(edges)]
        image = self.image[self.parent[edges]]
        if not shared:
            return self._sum_by_image(torch.sigmoid(logit), image)
        _, first, inverse = np.unique(self.cell_place()[edges], return_index=True, return_inverse=True)
        log_none = torch.zeros(len(first), dtype=logit.dtype, device=self.device).index_add(
            0, self._tensor(inverse), torch.nn.functional.logsigmoid(-logit)
        )
        return self._sum_by_image(-torch.expm1(log_none), image[first])

    def mean_by_cell(self, depth: int, cells: int, images: Bools | None = None) -> Float[Tensor, " cell"]:
        """Average probability of each place in the grid over all expanded fixations that had it: equation (15).

        Over some images; by default over those without an error.
        """
        edges = self.decisions(depth)
        # An image that failed has left; its decisions count nowhere.
        counted = self.alive if images is None else images
        edges = edges[counted[self.image[self.parent[edges]]]]
        cell = self._tensor(self.cell[edges])
        total = torch.zeros(cells, dtype=self.logit.dtype, device=self.device)
        total = total.index_add(0, cell, torch.sigmoid(self.logit[self._tensor(edges)]))
        return whole_mean(total, torch.bincount(cell, minlength=cells))

    def best_probabilities(self, depth: int) -> Floats:
        """For every distinct cell that was a candidate at ``depth``: the largest probability that it was given."""
        edges = np.flatnonzero(self.depth[self.parent] == depth)
        places, inverse = np.unique(self.cell_place()[edges], return_inverse=True)
        best = np.zeros(len(places))
        np.maximum.at(best, inverse, self.probability[edges])
        return best

    def cells_attended(self, depth: int) -> Floats:
        """Per image the number of fixations at depths 1 to ``depth``."""
        counted = (self.depth > 0) & (self.depth <= depth)
        return np.bincount(self.image[counted], minlength=self.images).astype(np.float64)

    def _sum_by_image(self, values: Tensor, image: Ints) -> Tensor:
        zeros = torch.zeros(self.images, dtype=values.dtype, device=self.device)
        return zeros.index_add(0, self._tensor(image), values)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]``, rows of which may be taken several times, with a gradient that is summed in order.

    On a CPU the gradient of plain indexing is added up by several threads at once, in any order; on CUDA it is that of
    ``index_select``.
    """
    return values[index] if values.is_cuda else values.index_select(0, index)


def place(image: Ints, depth: Ints, row: Ints, column: Ints) -> Ints:
    """Pack (image, depth, row, column) into one integer: 18, 6, 20 and 20 bits, far above any bound of a run."""
    return ((image << 46) | (depth << 40) | (row << 20) | column).astype(np.int64)
