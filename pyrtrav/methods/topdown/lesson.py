"""A first lesson from region hints: places around the hints at every depth, before any traversal.

A traversal that has learned nothing yet spends most of its fixations where nothing is to be seen, and comes upon the
evidence by luck. Here places of the grid are drawn in each image with hints, at all depths below the glance alike: two
of three hold a hint, the others lie anywhere in the image. Of each the location module learns for which cells the hints
ask, and of those that show a hint the classification module learns the label. So the encoder learns what the evidence
looks like from few places an image.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pyrtrav.draws import Generators, Purpose, own_draws
from pyrtrav.geometry import Grid, Region
from pyrtrav.methods.base import Metrics, Objective
from pyrtrav.methods.topdown.guidance import Boxes, asked_for, attached_logit, hints_of, missed_hints
from pyrtrav.policy_gradient import batch_mean, log_likelihood
from pyrtrav.ranks import whole_mean
from pyrtrav.sampling import Images, root_of
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import Places, Traversal

LOOKS = 8
"""Places an image and step."""

AIMED = 2 / 3
"""Share of them that hold a hint."""


class HintLesson(Objective):
    """Likelihood of what hints ask for, and of the label given a place that shows one; negated: a loss."""

    def __init__(self, max_depth: int, balance: float) -> None:
        """``balance`` is ``hint_balance`` of ``TopDownConfig``."""
        super().__init__()
        self.max_depth, self.balance = max_depth, balance

    def forward(
        self,
        model: torch.nn.Module,
        images: Images,
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        """Also where no image has hints: all processes take the means together."""
        traversal, hints = model.traversal, hints_of(images)
        assert isinstance(traversal, Traversal)
        places = draw_places(traversal, images, hints, self.max_depth, generator)
        trace = traversal.glimpse(images, places, self.max_depth)
        asked = asked_for(trace.cell_region, trace.image[trace.parent], hints)
        missed = missed_hints(attached_logit(trace, traversal.policy), asked, self.balance)
        hint_loss = whole_mean(missed, len(np.unique(trace.parent)))
        shown = np.flatnonzero((trace.depth > 0) & asked_for(trace.region, trace.image, hints))
        learned = torch.zeros(0, device=trace.device)
        metrics: Metrics = {"hint_loss": float(hint_loss.detach())} if hint_loss > 0 else {}
        if len(shown):
            own = labels.to(trace.device)[torch.from_numpy(trace.image[shown]).to(trace.device)]
            logits = model.classify(trace.vector[torch.from_numpy(shown).to(trace.device)])  # type: ignore[operator]
            learned = self.criterion(logits, own)
            metrics["loss"] = -float(log_likelihood(logits.detach(), own).mean())
            metrics["accuracy"] = float((logits.argmax(1) == own).double().mean())
        return hint_loss - batch_mean(learned), metrics, trace


def draw_places(traversal: Traversal, images: Images, hints: Boxes, max_depth: int, generator: Generators) -> Places:
    """Draw ``LOOKS`` places of each image with hints; what is drawn twice counts once."""
    grid, base = traversal.grid, traversal.encoder.base_resolution
    settings = Settings(select="all", depth=max_depth)
    found: set[tuple[int, int, int, int]] = set()
    for number, boxes in enumerate(hints):
        if not boxes:
            continue
        image = images[number]
        root, deepest = root_of(image, base), traversal.depth_of(image, settings)
        draws = own_draws(generator, number, len(images), 5 * LOOKS, Purpose.PLACES).reshape(LOOKS, 5)
        for deep, aimed, which, across, down in draws.tolist():
            depth, box = min(1 + int(deep * deepest), deepest), boxes[int(which * len(boxes))]
            x, y = box.x + box.width / 2, box.y + box.height / 2
            seen = Region(x, y, 0, 0) if aimed < AIMED else image.bounds
            column = _between(grid, depth, root.width, seen.x - root.x, seen.right - root.x, across)
            row = _between(grid, depth, root.width, seen.y - root.y, seen.bottom - root.y, down)
            found.add((number, depth, column, row))
    return Places(*np.array(sorted(found), np.int64).reshape(-1, 4).T)


def _between(grid: Grid, depth: int, side: float, first: float, last: float, draw: float) -> int:
    """A lattice position, along one axis, of a cell that holds some of what lies between first and last."""
    if depth == 0:
        return 0
    cell = side * grid.side**depth
    unit = side * grid.stride * grid.side ** (depth - 1)
    lowest = max(math.floor((first - cell) / unit + 1e-6) + 1, 0)
    highest = min(math.floor(last / unit - 1e-6), grid.positions(depth) - 1)
    return lowest + int(draw * max(highest - lowest + 1, 1))
