"""The one loop: look, decide where to look next, until nothing is left to look at.

Level by level (or round by round under a budget) the fixations of all images go through the encoder in batches of at
most ``encode_batch``; the next batch is read by a thread while this one is encoded.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder, Encoding
from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Grid, halvings, root_region
from pyrtrav.sampling import Image, PatchSampler
from pyrtrav.selection import Bools, Floats, Ints, Settings, affordable, best_first, eligible_edges
from pyrtrav.trace import Trace

Generators = torch.Generator | Sequence[torch.Generator]
"""One for the batch (training), or one for each image, so that draws do not depend on what else is in the batch."""


class Policy(nn.Module):
    """Where to look next: a logit for every cell of a fixation's grid, from its map."""

    grid: Grid

    @abstractmethod
    def forward(self, encoding: Encoding) -> Tensor:
        """Return logits (fixation, cell); cells are numbered row by row."""


class Fixations(NamedTuple):
    """Places that will be looked at, on the fixation axis; ``edges`` are the trace's edges that lead there."""

    image: Ints
    depth: Ints
    column: Ints
    row: Ints
    region: Floats
    edges: list[Ints]


class Limits(NamedTuple):
    """Per image: how deep it goes, and the rectangle (left, top, right, bottom) that holds image."""

    depth: Ints
    bounds: Floats


class Traversal(nn.Module):
    """Runs an encoder and a policy over images and writes the trace."""

    def __init__(self, encoder: Encoder, policy: Policy, finest_mpp: float | None = None) -> None:
        super().__init__()
        self.encoder, self.policy = encoder, policy
        self.finest_mpp = finest_mpp

    @property
    def grid(self) -> Grid:
        return self.policy.grid

    def forward(self, images: Sequence[Image], settings: Settings, generator: Generators | None = None) -> Trace:
        """Traverse the images.

        Args:
            images: open pyramids of the encoder's channels; one may occur several times (Monte Carlo samples).
            settings: how deep and by what selection.
            generator: for ``sample``: one for all, or one for each image.
        """
        base = self.encoder.base_resolution
        device = next(self.parameters()).device
        trace = Trace([root_region(image.bounds, base) for image in images], device)
        limits = self._limits(images, trace, settings)
        sampler = PatchSampler(images, base)
        fixations = _glance(trace)
        step = 0
        while len(fixations.image):
            expanded, encoding = self._look(trace, fixations, sampler, settings.encode_batch, step)
            self._propose(trace, expanded, encoding, limits, settings, generator)
            fixations = self._choose(trace, settings)
            step += 1
        return trace

    def depth_of(self, image: Image, settings: Settings) -> int:
        """How deep the image is followed: the settings' depth, less where it has fewer halvings."""
        finest = 1.0
        if self.finest_mpp is not None and image.mpp is not None:
            finest = max(1.0, self.finest_mpp / image.mpp)
        base = self.encoder.base_resolution
        return min(settings.depth, halvings(root_region(image.bounds, base), base, self.grid.side, finest))

    def _limits(self, images: Sequence[Image], trace: Trace, settings: Settings) -> Limits:
        depth = np.array([self.depth_of(image, settings) for image in images], np.int64)
        bounds = np.array([(b.x, b.y, b.right, b.bottom) for b in (image.bounds for image in images)])
        return Limits(depth, bounds)

    # Look.

    def _look(
        self, trace: Trace, fixations: Fixations, sampler: PatchSampler, encode_batch: int, step: int
    ) -> tuple[Ints, Encoding]:
        """Read and encode fixations and put them in the trace; those of images that fail are dropped."""
        vectors, maps = [], []
        for patches in self._read_ahead(trace, fixations, sampler, encode_batch):
            begun = time.perf_counter()
            encoding = self._encode(patches.to(trace.device))
            vectors.append(encoding.vector)
            maps.append(encoding.map)
            trace.seconds["encode"] += time.perf_counter() - begun
        vector, map_ = torch.cat(vectors), torch.cat(maps)
        keep = np.flatnonzero(trace.alive[fixations.image])
        if len(keep) < len(fixations.image):
            index = torch.from_numpy(keep).to(trace.device)
            vector, map_ = vector[index], map_[index]
        added = trace.add_fixations(
            fixations.image[keep],
            fixations.depth[keep],
            step,
            fixations.column[keep],
            fixations.row[keep],
            fixations.region[keep],
            vector,
        )
        for position, index in zip(keep.tolist(), added.tolist(), strict=True):
            trace.child[fixations.edges[position]] = index
        return added, Encoding(vector, map_)

    def _encode(self, patches: Tensor) -> Encoding:
        scaled = patches.float().div_(255)
        mixed = torch.autocast("cuda", torch.bfloat16) if patches.is_cuda else nullcontext()
        with mixed:
            encoding: Encoding = self.encoder(scaled)
        return Encoding(encoding.vector.float(), encoding.map.float())

    def _read_ahead(
        self, trace: Trace, fixations: Fixations, sampler: PatchSampler, encode_batch: int
    ) -> Iterator[Tensor]:
        """Yield the patches chunk by chunk, with the next chunk being read meanwhile."""
        starts = range(0, len(fixations.image), encode_batch)

        def read(start: int) -> tuple[Tensor, dict[int, PyramidError]]:
            chunk = slice(start, start + encode_batch)
            return sampler(fixations.image[chunk], fixations.region[chunk])

        if len(starts) == 1:
            begun = time.perf_counter()
            patches, errors = read(0)
            trace.seconds["read"] += time.perf_counter() - begun
            _note_errors(trace, errors)
            yield patches
            return
        with ThreadPoolExecutor(1, thread_name_prefix="pyrtrav-read") as reader:
            ahead = reader.submit(read, 0)
            for start in starts:
                begun = time.perf_counter()
                patches, errors = ahead.result()
                trace.seconds["read"] += time.perf_counter() - begun
                if start + encode_batch < len(fixations.image):
                    ahead = reader.submit(read, start + encode_batch)
                _note_errors(trace, errors)
                yield patches

    # Decide.

    def _propose(
        self,
        trace: Trace,
        fixations: Ints,
        encoding: Encoding,
        limits: Limits,
        settings: Settings,
        generator: Generators | None,
    ) -> None:
        """Give the trace the edges of the new fixations that may be followed further."""
        deeper = trace.depth[fixations] < limits.depth[trace.image[fixations]]
        if not deeper.any():
            return
        index = torch.from_numpy(np.flatnonzero(deeper)).to(trace.device)
        logits = self.policy(Encoding(encoding.vector[index], encoding.map[index])).float()
        parents = np.repeat(fixations[deeper], self.grid.count)
        cell = np.tile(np.arange(self.grid.count), int(deeper.sum()))
        column, row, region = self._cells(trace, parents, cell)
        inside = _holds_image(region, limits.bounds[trace.image[parents]])
        kept = torch.from_numpy(np.flatnonzero(inside)).to(trace.device)
        logit = logits.reshape(-1)[kept]
        parents, cell = parents[inside], cell[inside]
        probability = torch.sigmoid(logit.detach()).cpu().numpy().astype(np.float64)
        draws = _draw(trace.image[parents], generator) if settings.select == "sample" else None
        eligible = eligible_edges(settings, probability, trace.depth[parents], parents, cell, draws)
        trace.add_edges(
            parents, cell, column[inside], row[inside], region[inside], logit, probability, eligible
        )

    def _cells(self, trace: Trace, parents: Ints, cell: Ints) -> tuple[Ints, Ints, Floats]:
        """Lattice positions and regions (edge axis) of cells; on a lattice they come from the root, so equal is equal."""
        grid = self.grid
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

    # Choose.

    def _choose(self, trace: Trace, settings: Settings) -> Fixations:
        """Turn edges on for one round; returns the new places. Edges to attended cells are turned on at no cost."""
        pending = np.flatnonzero(trace.eligible & ~trace.on & trace.alive[trace.image[trace.parent]])
        share = settings.share_cells and self.grid.ratio is not None
        where = trace.cell_place() if share else np.arange(len(trace.parent))
        attended = dict(zip(trace.fixation_place().tolist(), range(len(trace.image)), strict=True)) if share else {}
        score = trace.scores()
        chosen: list[Ints] = []
        for image in np.unique(trace.image[trace.parent[pending]]).tolist():
            edges = pending[trace.image[trace.parent[pending]] == image]
            chosen.append(self._round(trace, settings, image, edges, where, attended, score))
        return _new_fixations(trace, np.concatenate(chosen) if chosen else pending[:0], where, attended)

    def _round(
        self,
        trace: Trace,
        settings: Settings,
        image: int,
        edges: Ints,
        where: Ints,
        attended: dict[int, int],
        score: Floats,
    ) -> Ints:
        """The edges of one image to turn on now, in the order in which their cells are numbered."""
        parent = trace.parent[edges]
        left = settings.allowed - int((trace.image == image).sum())
        capped = settings.budget is not None
        new = len(set(where[edges].tolist()) - attended.keys())
        if not capped and new <= left:
            natural = np.lexsort((parent, trace.cell_column[edges], trace.cell_row[edges]))
            return edges[natural]
        depth = trace.depth[parent] + 1
        order = best_first(
            score[parent] * trace.probability[edges], depth, trace.cell_row[edges], trace.cell_column[edges], parent
        )
        round_size = min(settings.beam, left) if capped else left
        taken, cut = affordable(order, where[edges], attended.keys(), round_size)
        if cut and round_size == left and (not capped or settings.select != "budget"):
            trace.truncated[image] = True
        if cut and round_size == left:
            # Nothing more can be afforded: what is left stays off.
            trace.eligible[np.setdiff1d(edges, edges[taken])] = False
        return edges[taken]


def _glance(trace: Trace) -> Fixations:
    count = trace.images
    zeros = np.zeros(count, np.int64)
    region = np.array([root.as_tuple() for root in trace.roots]).reshape(count, 4)
    return Fixations(np.arange(count), zeros, zeros, zeros, region, [zeros[:0]] * count)


def _new_fixations(trace: Trace, edges: Ints, where: Ints, attended: dict[int, int]) -> Fixations:
    """Group chosen edges by place: attended places get their edge at once, the others become fixations, in order."""
    new: dict[int, list[int]] = {}
    for edge in edges.tolist():
        known = attended.get(int(where[edge]))
        if known is None:
            new.setdefault(int(where[edge]), []).append(edge)
        else:
            trace.child[edge] = known
    first = np.array([group[0] for group in new.values()], np.int64)
    parent = trace.parent[first]
    return Fixations(
        trace.image[parent],
        trace.depth[parent] + 1,
        trace.cell_column[first],
        trace.cell_row[first],
        trace.cell_region[first],
        [np.array(group, np.int64) for group in new.values()],
    )


def _holds_image(region: Floats, bounds: Floats) -> Bools:
    """Whether cells share area with the image; those that do not are no candidates."""
    x, y, width, height = region.T
    left, top, right, bottom = bounds.T
    inside: Bools = (np.minimum(x + width, right) > np.maximum(x, left)) & (
        np.minimum(y + height, bottom) > np.maximum(y, top)
    )
    return inside


def _draw(image: Ints, generator: Generators | None) -> Floats:
    """Uniforms on the edge axis, which is ordered by image."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(len(image), generator=generator, dtype=torch.float64).numpy()
    draws = np.empty(len(image))
    for number in np.unique(image).tolist():
        members = image == number
        count = int(members.sum())
        draws[members] = torch.rand(count, generator=generator[number], dtype=torch.float64).numpy()
    return draws


def _note_errors(trace: Trace, errors: dict[int, PyramidError]) -> None:
    for image, error in errors.items():
        trace.errors[image] = trace.errors[image] or error


