"""What a method is: the contract between models and everything that uses them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder
from pyrtrav.geometry import Region
from pyrtrav.methods.criterion import Criterion
from pyrtrav.sampling import Image
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import Generators
from pyrtrav.tree import Cell, Node

Metrics = dict[str, float]


class Model(nn.Module):
    """A trained or trainable model of some method: it looks, believes, and says what it saw."""

    encoder: Encoder
    max_depth: int

    @abstractmethod
    def look(self, images: Sequence[Image], settings: Settings, generator: Generators | None = None) -> Trace:
        """Traverse the images; those that cannot be read stand in ``Trace.errors``."""

    @abstractmethod
    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Return the logits of a run that stops at ``depth``; zeros for images with an error."""

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

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        """Return the fixations of one image as plain data, the glance first."""
        return nodes_of(trace, image, self.encoder.base_resolution, self.grid_cells)

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        """Return, for each of the image's fixations, the log-probability of a class less what it would be without it.

        In nats, recomputed from the trace; None where a method has nothing to leave out, as the glance.
        """
        return [None] * len(trace.fixations_of(image))

    grid_cells: int = 0
    """Cells along one side of a fixation's grid; 0 where a method has none."""


class Objective(nn.Module):
    """What trains a model in one stage; its buffers travel in the checkpoint."""

    criterion: Criterion = Criterion()
    """How a belief is scored against its label; the trainer sets it from its options."""

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


@dataclass(frozen=True)
class Method:
    """A method by name: everything that the rest of the program needs to know about it."""

    name: str
    paper: str
    Config: type[Any]
    supports: frozenset[str]
    """Of {"select", "budget", "cells", "hints"}: which options mean something."""
    encoders: frozenset[str] | None
    """Names of the encoders that it works with; None for all."""
    build: Callable[[Any, Encoder, int], Model]
    """(config, encoder, number of classes) -> model."""
    stages: Callable[[Any], Sequence[Stage]]
    """Training stages, in order."""


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
