"""What a method is: the contract between models and everything that uses them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.draws import Generators
from pyrtrav.encoders.base import Encoder
from pyrtrav.geometry import Region
from pyrtrav.methods.criterion import Criterion
from pyrtrav.sampling import Image, make_sampler
from pyrtrav.selection import EDGE_SELECTS, Ints, Select, Settings
from pyrtrav.trace import Trace
from pyrtrav.tree import Cell, Node

Metrics = dict[str, float]


class Model(nn.Module):
    """A trained or trainable model of some method: it looks, believes, and says what it saw."""

    encoder: Encoder
    max_depth: int
    _macs: Any = None
    """What modules cost, of a method that counts it once."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder":
            self._macs = None  # a pruned one costs less
        super().__setattr__(name, value)

    @abstractmethod
    def look(self, images: Sequence[Image], settings: Settings, generator: Generators | None = None) -> Trace:
        """Traverse the images; those that cannot be read stand in ``Trace.errors``."""

    @abstractmethod
    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Return the logits of a run that stops at ``depth``; zeros for images with an error."""

    def let_leave(self, trace: Trace, depth: int, settings: Settings, depths: Ints) -> None:
        """Mark the images that are sure enough after ``depth``; nothing more of them is to be looked at.

        A method whose runs go depth by depth calls it after each depth, and says "exit" in ``Method.supports``.

        Args:
            depths: (image,) how deep each goes otherwise; after its last depth an image leaves nothing.
        """
        if settings.stop_at is None:
            return
        trace.judged = True
        asked = trace.going & (depths > depth)
        if asked.any():
            probabilities = torch.softmax(self.believe(trace, depth).detach().double(), dim=1)
            sure = probabilities.amax(1).cpu().numpy() >= settings.confidence_at(depth)
            trace.left[asked & sure] = depth

    @abstractmethod
    def depth_of(self, image: Image, settings: Settings) -> int:
        """How deep this image is followed under the settings."""

    @abstractmethod
    def macs(self, trace: Trace) -> list[int]:
        """Multiply-accumulates spent on each image, counted from the trace."""

    def policy_weights(self) -> list[nn.Parameter]:
        """Return the weights that decide where to look. Their gradients are clipped by themselves: where they vary
        much from step to step, as those of REINFORCE do, they take nothing from the others' steps."""
        return []

    def true_gradients(self) -> AbstractContextManager[None]:
        """During the block gradients are the function's own, without what training does to them on their way."""
        return nullcontext()

    def pixels_encoded(self, trace: Trace) -> list[int]:
        """Pixels that the encoder saw of each image."""
        patch = self.encoder.base_resolution**2
        return [int(n) * patch for n in np.bincount(trace.image, minlength=trace.images)]

    def patches(self, images: Sequence[Image], trace: Trace) -> Float[Tensor, "fixation channels size size"]:
        """Read again what was looked at, in 0..1 as the encoder took it: from decoded tiles where the cache has them.

        Raises:
            ConfigError: a method that does not look at patches.
            PyramidError: an image cannot be read any more.
        """
        sampler = make_sampler(images, self.encoder.base_resolution, trace.device)
        found, errors = sampler(trace.image, trace.region)
        for error in errors.values():
            raise error
        dtype = next(self.parameters()).dtype
        patches = sampler.palette(found.to(trace.device), trace.image, dtype)
        return patches if patches.is_floating_point() else patches.to(dtype) / 255

    def encode_looks(
        self, patches: Float[Tensor, "fixation channels size size"], depth: Ints
    ) -> Float[Tensor, "fixation channel"]:
        """Return the vectors that a trace would hold of patches at these depths (fixation axis)."""
        vectors: Tensor = self.encoder(patches).vector
        return vectors

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        """Return the fixations of one image as plain data, the glance first."""
        return nodes_of(trace, image, self.encoder.base_resolution, self.grid_cells)

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        """Return, for each of the image's fixations, the log-probability of a class less what it would be without it.

        In nats, recomputed from the trace; None where a method has nothing to leave out, as the glance.
        """
        return [None] * len(trace.fixations_of(image))

    has_patches: bool = True
    """Whether what it looks at are patches of one size, which can be read again."""

    looks_alone: bool = True
    """Whether what it makes of a look follows from that look's patch alone."""

    grid_cells: int = 0
    """Cells along one side of a fixation's grid; 0 where a method has none."""


class Objective(nn.Module):
    """What trains a model in one stage; its buffers travel in the checkpoint."""

    criterion: Criterion = Criterion()
    """How a belief is scored against its label; the trainer sets it from its options."""
    passes: int = 1
    """Steps of the optimiser that a batch gets: the first by `forward`, the others by `again`."""
    again: Callable[[], Tensor] | None = None
    """Set by `forward`, where there are more passes: the loss once more, on what that call collected."""

    @abstractmethod
    def forward(
        self,
        model: Any,
        images: Sequence[Image],
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        """Return the loss to minimise, the batch's metrics and its trace; ``progress`` (0 to 1) is the stage's.

        The trace holds each image ``samples`` times, in runs. Every mean in the loss is a `ranks.whole_mean`: then
        the gradients of processes that share a batch add up to the batch's.
        """


@dataclass(frozen=True)
class Stage:
    """A part of training: how deep it looks, and with what objective."""

    name: str
    depth: int
    objective: Objective
    select: Select = "sample"
    """How validation looks during the stage."""


@dataclass(frozen=True)
class Method:
    """A method by name: everything that the rest of the program needs to know about it."""

    name: str
    paper: str
    Config: type[Any]
    supports: frozenset[str]
    """Of {"select", "budget", "cells", "exit", "hints"}: which options mean something."""
    encoders: frozenset[str] | None
    """Names of the encoders that it works with; None for all."""
    build: Callable[[Any, Encoder, int], Model]
    """(config, encoder, number of classes) -> model."""
    stages: Callable[[Any], Sequence[Stage]]
    """Training stages, in order."""
    selects: tuple[Select, ...] = EDGE_SELECTS
    """The selections that it knows, where it supports "select"."""


def nodes_of(trace: Trace, image: int, base_resolution: int, grid_cells: int) -> tuple[Node, ...]:
    """Return the fixations of one image as nodes, numbered in the order in which they were looked at."""
    from_trace = trace.fixations_of(image)
    number = {int(index): i for i, index in enumerate(from_trace)}
    score = trace.scores()
    parents: dict[int, list[int]] = {i: [] for i in number.values()}
    cells: dict[int, list[Cell]] = {i: [] for i in number.values()}
    edges = np.flatnonzero(trace.image[trace.parent] == image) if len(trace.parent) else trace.parent
    for edge in edges.tolist():
        parent = number[int(trace.parent[edge])]
        child = int(trace.child[edge])
        cell = int(trace.cell[edge])
        node = number[child] if child >= 0 else None
        cells[parent].append(Cell(cell % grid_cells, cell // grid_cells, float(trace.probability[edge]), node))
        if node is not None:
            parents[node].append(parent)
    return tuple(
        Node(
            i,
            tuple(sorted(parents[i])),
            int(trace.depth[index]),
            int(trace.step[index]),
            Region(*trace.region[index].tolist()),
            float(trace.region[index, 2]) / base_resolution,
            float(score[index]),
            None,
            tuple(cells[i]),
        )
        for index, i in number.items()
    )
