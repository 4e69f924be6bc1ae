"""The one loop: look, decide where to look next, until nothing is left to look at.

Level by level (or round by round under a budget) the fixations of all images go through the encoder in batches of at
most ``encode_batch``; the next batch is read by a thread while this one is encoded.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrtrav.cells import cells_of, holds_image
from pyrtrav.context import ParentContext, context_shifts
from pyrtrav.draws import Generators, draw
from pyrtrav.encoders.base import Encoder, Encoding
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid, halvings
from pyrtrav.rounds import Fixations, choose, first_look, led_from
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
from pyrtrav.selection import NOT_BY_DEPTH, Bools, Floats, Ints, Settings, eligible_edges
from pyrtrav.trace import Trace, place, take_rows

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
        fixations = first_look(trace)
        step = 0
        while len(fixations.image):
            expanded = self._look(trace, fixations, reading, step)
            if settings.budget is None:
                trace.bytes_read.append(bytes_read(images))
            if leave is not None:
                leave(trace, step, limits.depth)
            self._propose(trace, expanded, limits, settings, generator)
            fixations = choose(trace, settings, lattice=self.grid.ratio is not None)
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
        parent, cell = led_from(trace, fixations)
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
        column, row, region = cells_of(self.grid, trace, parents, cell)
        inside = holds_image(region, limits.bounds[trace.image[parents]])
        kept = torch.from_numpy(np.flatnonzero(inside)).to(trace.device)
        logit = logits.reshape(-1)[kept]
        parents, cell = parents[inside], cell[inside]
        probability = torch.sigmoid(logit.detach()).cpu().numpy().astype(np.float64)
        draws = draw(trace, parents, cell, generator) if settings.select == "sample" else None
        eligible = eligible_edges(settings, probability, trace.depth[parents], parents, cell, draws)
        trace.add_edges(parents, cell, column[inside], row[inside], region[inside], logit, probability, eligible)


def bytes_read(images: Images) -> list[int | None]:
    """Return the compressed bytes read of each image so far."""
    return [cost.bytes_read if (cost := getattr(image, "cost", None)) else None for image in images]


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
