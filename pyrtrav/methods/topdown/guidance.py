"""What region hints ask of a policy: which cells, with what loss, and draws that follow them.

A hint is a box around evidence. A cell is **asked for** where it holds the hint's centre, or at least half of the most
that a cell of its size could hold of the hint. That depends on the place alone, so that all parents of a shared cell
agree; a cell that only touches a hint is not asked for, since a neighbour shows it better; and wherever cells cover
their parent, a hint whose centre the parent holds leads on to at least one of them. With the half-overlapping 3 x 3
grid a small hint asks for one to four cells of a fixation that holds it, 2.25 on average.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pyrtrav.cells import cells_of
from pyrtrav.draws import Draws, Generators, Purpose, draw, own_draws
from pyrtrav.geometry import Region
from pyrtrav.ranks import whole_mean
from pyrtrav.sampling import Images
from pyrtrav.selection import Bools, Floats, Ints
from pyrtrav.trace import Trace
from pyrtrav.traversal import Policy, Traversal

Boxes = Sequence[Sequence[Region]]
"""For each image of a trace its hints, in the frame of the trace's regions."""

HELD = 0.5
"""Of the most that a cell could hold of a hint."""


def hints_of(images: Images) -> Boxes:
    """Return the hints that views carry; images that are no training views have none."""
    return [tuple(getattr(image, "hints", ())) for image in images]


def asked_for(region: Floats, image: Ints, hints: Boxes) -> Bools:
    """Whether hints ask for cells: ``region`` (cell, 4) as x, y, width, height, ``image`` (cell) into ``hints``."""
    asked = np.zeros(len(region), np.bool_)
    for number in np.unique(image).tolist():
        if hints[number]:
            own = image == number
            boxes = np.array([box.as_tuple() for box in hints[number]], np.float64)
            asked[own] = _asked_by(region[own][:, None], boxes[None]).any(1)
    return asked


def _asked_by(cell: Floats, box: Floats) -> Bools:
    """For every cell and box; both broadcast, (..., 4)."""
    held_x, most_x, centred_x = _along(cell[..., 0], cell[..., 2], box[..., 0], box[..., 2])
    held_y, most_y, centred_y = _along(cell[..., 1], cell[..., 3], box[..., 1], box[..., 3])
    asked: Bools = (centred_x & centred_y) | (held_x * held_y >= HELD * most_x * most_y)
    return asked


def _along(start: Floats, side: Floats, first: Floats, length: Floats) -> tuple[Floats, Floats, Bools]:
    """Along one axis: what a cell holds of a box, the most that it could, and whether it holds the box's centre."""
    held = np.minimum(start + side, first + length) - np.maximum(start, first)
    middle = first + length / 2
    return np.clip(held, 0, None), np.minimum(side, length), (start <= middle) & (middle < start + side)


def attached_logit(trace: Trace, policy: Policy) -> Float[Tensor, " edge"]:
    """Return the trace's logits once more, this time with a gradient that goes on into maps and encoder."""
    if len(trace.parent) == 0:
        return trace.logit
    logits = policy.logits(trace.map)
    edge = np.searchsorted(trace.expanded, trace.parent) * logits.shape[1] + trace.cell
    return logits.reshape(-1)[torch.from_numpy(edge).to(trace.device)]


def hint_likelihood(
    trace: Trace, depth: int, hints: Boxes, logits: Float[Tensor, " edge"], balance: float = 1.0
) -> Float[Tensor, ""]:
    """Return the log-likelihood that a fixation decides as hints ask, of a run down to ``depth``: 0 at best.

    The sum over a fixation's cells, averaged over the expanded fixations of images with hints, depth by depth, and over
    depths: deep ones have many fixations, most of which hold no hint. The sum puts it on the scale of REINFORCE, whose
    log p sums over decisions too. ``logits`` are the trace's, or ``attached_logit``.

    Its optimum is the frequency f with which a cell is asked for, given what the policy sees. Drawn with that, an
    unsure policy misses most; where a miss weighs ``balance`` times as much as a needless look, the optimum is
    balance f / (balance f + 1 - f).
    """
    edges = trace.decisions(depth)
    image = trace.image[trace.parent[edges]]
    hinted = trace.alive & np.array([len(boxes) > 0 for boxes in hints], np.bool_)
    edges, image = edges[hinted[image]], image[hinted[image]]
    asked = asked_for(trace.cell_region[edges], image, hints)
    parent = trace.parent[edges]
    level = trace.depth[parent]
    total, parents = [], []
    for number in range(depth):
        own = level == number
        logit = logits[torch.from_numpy(edges[own]).to(trace.device)]
        total.append(-missed_hints(logit, asked[own], balance))
        parents.append(len(np.unique(parent[own])))
    number_of = torch.tensor(parents, dtype=logits.dtype, device=trace.device)
    mean = whole_mean(torch.stack(total), number_of)
    # Depths that a fixation of any process has decided at.
    reached = whole_mean(number_of.sign(), 1) > 0
    return mean.sum() / reached.sum().clamp(min=1)


def missed_hints(logit: Float[Tensor, " edge"], asked: Bools, balance: float) -> Float[Tensor, ""]:
    """Return the negative log-likelihood of deciding as hints ask; a miss weighs ``balance`` needless looks."""
    target = torch.from_numpy(asked).to(logit)
    weight = torch.where(target > 0, balance, 1.0).to(logit)
    return functional.binary_cross_entropy_with_logits(logit, target, weight, reduction="sum")


def guided_images(hints: Boxes, share: float, generator: Generators) -> Bools:
    """Draw which images of a trace follow their hints: each that has some, with probability ``share``."""
    guided = np.zeros(len(hints), np.bool_)
    if share > 0:
        for number, boxes in enumerate(hints):
            if boxes:
                guided[number] = own_draws(generator, number, len(hints), 1, Purpose.GUIDE)[0] < share
    return guided


def guided_draws(traversal: Traversal, hints: Boxes, guided: Bools, generator: Generators) -> Draws:
    """Return draws that attend, in guided images, what the hints ask for, beside what the policy draws by itself."""

    def draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
        uniform = draw(trace, parents, cell, generator)
        image = trace.image[parents]
        forced = guided[image]
        _, _, region = cells_of(traversal.grid, trace, parents[forced], cell[forced])
        # Below any probability: the edge is on.
        uniform[np.flatnonzero(forced)[asked_for(region, image[forced], hints)]] = -1.0
        return uniform

    return draws
