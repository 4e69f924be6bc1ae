"""The one loop: look, decide where to look next, until nothing is left to look at.

Level by level (or round by round under a budget) the fixations of all images go through the encoder in batches of at
most ``encode_batch``; the next batch is read by a thread while this one is encoded.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrtrav.context import ParentContext, context_shifts
from pyrtrav.encoders.base import Encoder, Encoding
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid, halvings
from pyrtrav.sampling import (
    Image,
    Images,
    PatchSampler,
    StackedImage,
    StackSampler,
    make_sampler,
    read_ahead,
    root_of,
    sources,
)
from pyrtrav.selection import NOT_BY_DEPTH, Bools, Floats, Ints, Settings, affordable, best_first, eligible_edges
from pyrtrav.trace import Trace, place, take_rows

Draws = Callable[[Trace, Ints, Ints], Floats]
"""(trace, parents, cells) -> uniforms in 0..1 on the edge axis; an edge is on where its draw is below its
probability."""

Generators = torch.Generator | Sequence[torch.Generator] | Draws
"""One for the batch (training), one for each image, so that draws do not depend on what else is in the batch, or any
function that gives the draws."""


Encode = Callable[[Ints], tuple[Encoding, Bools]]
"""Reads and encodes the fixations at some positions; says for each whether its image could be read."""

Memory = Callable[[Sequence[Image], Ints, Floats, Encode], Encoding]
"""(images, image, region, encode) -> what the encoder makes of fixations, of which it may remember some."""


Leave = Callable[[Trace, int, Ints], None]
"""(trace, depth, how deep each image goes) -> marks the images that need no deeper look."""


class Policy(nn.Module):
    """Where to look next: a logit for every cell of a fixation's grid, from its map."""

    grid: Grid

    def forward(self, encoding: Encoding) -> Tensor:
        """Return logits (fixation, cell); no gradient goes back into the map."""
        return self.logits(encoding.map.detach())

    @abstractmethod
    def logits(self, map_: Tensor) -> Tensor:
        """Return logits (fixation, cell) from maps (fixation, channel, row, column); cells are numbered row by row."""


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


class Places(NamedTuple):
    """Positions on the lattice of each image."""

    image: Ints
    depth: Ints
    column: Ints
    row: Ints


class Expanded(NamedTuple):
    """The fixations of a step, and what the encoder made of the distinct places that they look at."""

    fixation: Ints
    """In the trace."""
    encoding: Encoding
    place: Ints
    """For each fixation where its place stands in the encoding."""


class Reading(NamedTuple):
    """Where patches come from."""

    sampler: PatchSampler | StackSampler
    source: Ints
    """Per image: equal numbers are one image."""
    encode_batch: int
    context: ParentContext | None
    """Keeps the run's patches, where an encoder sees each in its parent's."""


class Limits(NamedTuple):
    """Per image: how deep it goes, and the rectangle (left, top, right, bottom) that holds image."""

    depth: Ints
    bounds: Floats


def check_context(encoder: Encoder, grid: Grid) -> None:
    """Raise ConfigError where an encoder cannot see patches in their parents', or a grid gives no such context."""
    if not encoder.takes_context:
        raise ConfigError(
            "context=parent needs an encoder with coarser grids for what surrounds a patch, such as multigrid; "
            f"{type(encoder).__name__} as it is built here has none"
        )
    context_shifts(grid, encoder.base_resolution)


class Traversal(nn.Module):
    """Runs an encoder and a policy over images and writes the trace."""

    memory: Memory | None = None
    """Stands between fixations and the encoder where training keeps a frozen encoder's vectors."""

    def __init__(
        self, encoder: Encoder, policy: Policy, finest_mpp: float | None = None, *, in_parent: bool = False
    ) -> None:
        """
        Args:
            encoder: makes a vector and a map of each patch.
            policy: says from these where to look next.
            finest_mpp: micrometres a patch pixel, below which no image is followed.
            in_parent: the encoder sees each patch in the middle of what its parent's patch shows around it.

        Raises:
            ConfigError: an encoder that heeds no context, or cells that a parent's patch shows no context of.
        """
        super().__init__()
        self.encoder, self.policy = encoder, policy
        self.finest_mpp, self.in_parent = finest_mpp, in_parent
        if in_parent:
            check_context(encoder, policy.grid)

    @property
    def grid(self) -> Grid:
        return self.policy.grid

    def forward(
        self,
        images: Images,
        settings: Settings,
        generator: Generators | None = None,
        leave: Leave | None = None,
    ) -> Trace:
        """Traverse the images.

        Args:
            images: open pyramids of the encoder's channels; one may occur several times (Monte Carlo samples): what
                several of them look at is read and encoded once.
            settings: how deep and by what selection.
            generator: for ``sample``: one for all, or one for each image.
            leave: asked after each depth, of runs that go depth by depth.

        Raises:
            ConfigError: images are to leave early under a budget, whose rounds are no depths.
        """
        if settings.stop_at is not None and settings.budget is not None:
            raise ConfigError(NOT_BY_DEPTH)
        if self.in_parent and settings.share_cells:
            raise ConfigError("where a vector depends on its parent's patch, parents share no cells: share_cells=false")
        trace, limits, reading = self._begin(images, settings)
        fixations = _glance(trace)
        step = 0
        while len(fixations.image):
            expanded = self._look(trace, fixations, reading, step)
            if settings.budget is None:
                trace.bytes_read.append(bytes_read(images))
            if leave is not None:
                leave(trace, step, limits.depth)
            self._propose(trace, expanded, limits, settings, generator)
            fixations = self._choose(trace, settings)
            step += 1
        if leave is not None:
            # Nothing is left to look at, but a later depth may ask for less.
            for depth in range(step, int(limits.depth.max(initial=0))):
                leave(trace, depth, limits.depth)
        return trace

    def glimpse(self, images: Images, places: Places, depth: int) -> Trace:
        """Look at places wherever they are; returns a trace of these alone.

        Its edges are the cells of those above ``depth``, all off.

        Raises:
            ConfigError: the grid has no lattice.
        """
        settings = Settings(select="all", depth=depth)
        trace, limits, reading = self._begin(images, settings)
        if not len(places.image):
            return trace
        regions = [
            self.grid.lattice_region(trace.roots[image], *place).as_tuple()
            for image, *place in np.stack(places, axis=1).tolist()
        ]
        none = np.zeros(0, np.int64)
        fixations = Fixations(*places, np.array(regions), none, none)
        expanded = self._look(trace, fixations, reading, 0)
        self._propose(trace, expanded, limits, settings, None)
        return trace

    def _begin(self, images: Images, settings: Settings) -> tuple[Trace, Limits, Reading]:
        base, device = self.encoder.base_resolution, next(self.parameters()).device
        trace = Trace([root_of(image, base) for image in images], device)
        context = ParentContext(self.grid, base) if self.in_parent else None
        reading = Reading(make_sampler(images, base, device), sources(images), settings.encode_batch, context)
        return trace, self._limits(images, settings), reading

    def depth_of(self, image: Image | StackedImage, settings: Settings) -> int:
        """How deep the image is followed: the settings' depth, less where it has fewer halvings."""
        finest = 1.0
        if self.finest_mpp is not None and image.mpp is not None:
            finest = max(1.0, self.finest_mpp / image.mpp)
        base = self.encoder.base_resolution
        return min(settings.depth, halvings(root_of(image, base), base, self.grid.side, finest))

    def _limits(self, images: Images, settings: Settings) -> Limits:
        depth = np.array([self.depth_of(image, settings) for image in images], np.int64)
        bounds = np.array([(b.x, b.y, b.right, b.bottom) for b in (image.bounds for image in images)])
        return Limits(depth, bounds)

    # Look.

    def _look(self, trace: Trace, fixations: Fixations, reading: Reading, step: int) -> Expanded:
        """Read and encode fixations and put them in the trace; those of images that fail are dropped."""
        source = reading.source[fixations.image]
        where = place(source, fixations.depth, fixations.row, fixations.column)
        parent, cell = _led_from(trace, fixations)
        if reading.context is not None:
            # A place, and which of its parent's cells it is, say which parent that is.
            _, where = np.unique(np.stack([where, cell], axis=1), axis=0, return_inverse=True)
        distinct, inverse = _in_order(where)
        image, region = fixations.image[distinct], fixations.region[distinct]

        def encode(positions: Ints) -> tuple[Encoding, Bools]:
            def images_at(index: int) -> list[int]:
                numbers: list[int] = fixations.image[inverse == positions[index]].tolist()
                return numbers

            own, dtype = distinct[positions], next(self.parameters()).dtype
            patches = read_ahead(
                reading.sampler, trace, image[positions], region[positions], reading.encode_batch, dtype, images_at
            )
            encoding = self._encode(trace, patches, reading.context, parent[own], cell[own])
            return encoding, trace.alive[image[positions]]

        if self.memory is None or isinstance(reading.sampler, StackSampler):
            encoding, _ = encode(np.arange(len(distinct)))
        else:
            encoding = self.memory(reading.sampler.pyramids, image, region, encode)
        keep = np.flatnonzero(trace.alive[fixations.image])
        at = inverse[keep]
        added = trace.add_fixations(
            fixations.image[keep],
            fixations.depth[keep],
            step,
            fixations.column[keep],
            fixations.row[keep],
            fixations.region[keep],
            _rows(encoding.vector, at),
        )
        if reading.context is not None:
            reading.context.keep(at)
        index_of = np.full(len(fixations.image), -1)
        index_of[keep] = added
        trace.child[fixations.edge] = index_of[fixations.leads_to]
        return Expanded(added, encoding, at)

    def _encode(
        self, trace: Trace, patches: Iterator[Tensor], context: ParentContext | None, parent: Ints, cell: Ints
    ) -> Encoding:
        """Encode patches as they come; ``parent`` and ``cell`` say of each in whose patch it lies, and where."""
        vectors, maps, done = [], [], 0
        for some in patches:
            begun = time.perf_counter()
            own = slice(done, done + len(some))
            around = None if context is None else context.around(some, parent[own], cell[own])
            encoding: Encoding = self.encoder(some, around)
            vectors.append(encoding.vector)
            maps.append(encoding.map)
            done = own.stop
            trace.seconds["encode"] += time.perf_counter() - begun
        return Encoding(torch.cat(vectors), torch.cat(maps)) if len(vectors) > 1 else encoding

    # Decide.

    def _propose(
        self,
        trace: Trace,
        expanded: Expanded,
        limits: Limits,
        settings: Settings,
        generator: Generators | None,
    ) -> None:
        """Give the trace the edges of the new fixations that may be followed further."""
        fixations, encoding = expanded.fixation, expanded.encoding
        image = trace.image[fixations]
        deeper = (trace.depth[fixations] < limits.depth[image]) & trace.going[image]
        if not deeper.any():
            return
        needed, back = np.unique(expanded.place[deeper], return_inverse=True)
        seen = Encoding(_rows(encoding.vector, needed), _rows(encoding.map, needed))
        logits = _rows(self.policy(seen), back)
        if torch.is_grad_enabled():
            trace.keep_maps(fixations[deeper], seen.map, back)
        parents = np.repeat(fixations[deeper], self.grid.count)
        cell = np.tile(np.arange(self.grid.count), int(deeper.sum()))
        column, row, region = self.cells_of(trace, parents, cell)
        inside = _holds_image(region, limits.bounds[trace.image[parents]])
        kept = torch.from_numpy(np.flatnonzero(inside)).to(trace.device)
        logit = logits.reshape(-1)[kept]
        parents, cell = parents[inside], cell[inside]
        probability = torch.sigmoid(logit.detach()).cpu().numpy().astype(np.float64)
        draws = draw(trace, parents, cell, generator) if settings.select == "sample" else None
        eligible = eligible_edges(settings, probability, trace.depth[parents], parents, cell, draws)
        trace.add_edges(parents, cell, column[inside], row[inside], region[inside], logit, probability, eligible)

    def cells_of(self, trace: Trace, parents: Ints, cell: Ints) -> tuple[Ints, Ints, Floats]:
        """Lattice positions and regions (edge axis) of cells; on a lattice equal places have equal regions."""
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
        if settings.share_cells and self.grid.ratio is not None:
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
                chosen.append(self._best(trace, settings, number, own, where, attended, score, int(left[number])))
        return _new_fixations(trace, np.concatenate(chosen), where, attended)

    def _best(
        self,
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


def bytes_read(images: Images) -> list[int | None]:
    """Return the compressed bytes read of each image so far."""
    return [cost.bytes_read if (cost := getattr(image, "cost", None)) else None for image in images]


def _glance(trace: Trace) -> Fixations:
    count = trace.images
    zeros, none = np.zeros(count, np.int64), np.zeros(0, np.int64)
    region = np.array([root.as_tuple() for root in trace.roots]).reshape(count, 4)
    return Fixations(np.arange(count), zeros, zeros, zeros, region, none, none)


def _led_from(trace: Trace, fixations: Fixations) -> tuple[Ints, Ints]:
    """Return the parent that leads to each fixation, -1 for none, and which of its cells each is."""
    parent, cell = np.full(len(fixations.image), -1), np.zeros(len(fixations.image), np.int64)
    parent[fixations.leads_to] = trace.parent[fixations.edge]
    cell[fixations.leads_to] = trace.cell[fixations.edge]
    return parent, cell


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


def _holds_image(region: Floats, bounds: Floats) -> Bools:
    """Whether cells share area with the image; those that do not are no candidates."""
    x, y, width, height = region.T
    left, top, right, bottom = bounds.T
    # What rounding alone shares is nothing.
    inside: Bools = (np.minimum(x + width, right) - np.maximum(x, left) > 1e-6 * width) & (
        np.minimum(y + height, bottom) - np.maximum(y, top) > 1e-6 * height
    )
    return inside


def draw(trace: Trace, parents: Ints, cell: Ints, generator: Generators | None) -> Floats:
    """Return uniforms in 0..1 on the edge axis."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(len(parents), generator=generator, dtype=torch.float64).numpy()
    if callable(generator):
        return generator(trace, parents, cell)
    image = trace.image[parents]
    draws = np.empty(len(image))
    for number in np.unique(image).tolist():
        own = image == number
        draws[own] = torch.rand(int(own.sum()), generator=generator[number], dtype=torch.float64).numpy()
    return draws


class Purpose(IntEnum):
    """What draws of an image's own are for; those for one are not those for another."""

    TILES = 1
    GUIDE = 2
    PLACES = 3
    PATCHES = 4


def own_draws(generator: Generators | None, image: int, images: int, count: int, purpose: Purpose) -> Floats:
    """Return uniforms in 0..1 that an image has for something else than its cells.

    Args:
        image: its number among ``images``, in which each may stand several times, in runs.
        count: how many.
        purpose: heeded where the generator is a function that knows its images.
    """
    known = getattr(generator, "own", None)
    if known is not None:
        drawn: Floats = known(image, images, count, purpose)
        return drawn
    one = generator[image] if isinstance(generator, Sequence) else generator
    own = one if isinstance(one, torch.Generator) else None
    return torch.rand(count, generator=own, dtype=torch.float64).numpy()


def _in_order(values: Ints) -> tuple[Ints, Ints]:
    """Return where the distinct values first stand, in that order, and for every value its place among them."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]


def _rows(values: Tensor, index: Ints) -> Tensor:
    """Return ``values[index]``, without a copy where that is all of them in order."""
    if len(index) == len(values) and (index == np.arange(len(values))).all():
        return values
    return take_rows(values, torch.from_numpy(index).to(values.device))
