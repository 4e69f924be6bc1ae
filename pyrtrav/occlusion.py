"""Which places a prediction depends on: each is covered with noise by turns, and the prediction made again.

Source: "Multigrid Neural Architectures", figures 6 and 7: a square of uniform random noise is swept over the input.
Here it is swept over what was looked at: every look's patch is divided into squares, and a square is a place of the
image, so every look that shows it has noise there, in its own pixels. Where was looked at is held fixed. The patches
are read again, from tiles that the cache still holds: none is decoded twice unless the looks outgrew it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Region
from pyrtrav.methods.base import Model
from pyrtrav.sampling import Image
from pyrtrav.selection import Ints
from pyrtrav.trace import Trace

ENCODE_BATCH = 256

SQUARES = 8
"""Along each side of a look."""


class _Cover(NamedTuple):
    """Pixels of one look that show a square."""

    square: int
    fixation: int
    rows: slice
    columns: slice


def sensitivities(
    model: Model, image: Image, trace: Trace, depth: int, label: int, *, squares: int = SQUARES, seed: int = 0
) -> Float[NDArray[np.float64], "fixation squares squares"]:
    """Return, in nats, by how much noise over each square lowers the log-odds of a class against all others.

    Log-odds go on changing where a probability is 1 to the last digit.

    Args:
        image: the one that the trace is of.
        trace: of this image alone, without an error.
        depth: where the run stopped.
        label: the predicted class.
        squares: along each side of a look (rows, columns).
        seed: of the noise.

    Raises:
        ConfigError: below one square, or a method that has no patches.
        PyramidError: the image can no longer be read.
    """
    if squares < 1:
        raise ConfigError(f"a look is divided into at least 1 square along each side, not {squares}")
    patches = model.patches([image], trace)
    whole = _log_odds(model, trace, depth, label)
    generator = torch.Generator().manual_seed(seed)
    found = np.zeros((len(trace.image), squares, squares))
    regions = [Region(*row) for row in trace.region.tolist()]
    for fixation, region in enumerate(regions):
        covers = list(_covers(region, regions, squares, patches.shape[-1]))
        vectors = _encode(model, patches, trace.depth, covers, generator)
        for square in range(squares**2):
            own = [i for i, cover in enumerate(covers) if cover.square == square]
            changed = trace.vector.clone()
            changed[[covers[i].fixation for i in own]] = vectors[own]
            there = _log_odds(model, trace.with_vectors(changed), depth, label)
            found[fixation, square // squares, square % squares] = whole - there
    return found


def _covers(region: Region, looks: list[Region], squares: int, size: int) -> Iterator[_Cover]:
    """What of each look shows each square of a region, looks that show none of its pixels' centres left out."""
    side = region.width / squares
    for square in range(squares**2):
        left, top = region.x + square % squares * side, region.y + square // squares * side
        for fixation, look in enumerate(looks):
            columns = covered(look.x, look.width, size, left, left + side)
            rows = covered(look.y, look.height, size, top, top + side)
            if columns.start < columns.stop and rows.start < rows.stop:
                yield _Cover(square, fixation, rows, columns)


def covered(start: float, length: float, size: int, first: float, last: float) -> slice:
    """Return the pixels, ``size`` along a look, whose centres lie in ``first <= centre < last`` (level-0 pixels)."""
    pixel = length / size

    def until(place: float) -> int:
        # What rounding alone adds is nothing.
        return min(max(math.ceil((place - start) / pixel - 0.5 - 1e-9), 0), size)

    return slice(until(first), until(last))


def _encode(model: Model, patches: Tensor, depth: Ints, covers: list[_Cover], generator: torch.Generator) -> Tensor:
    """The vectors of looks with noise over their part of a square (cover axis)."""
    vectors = []
    for start in range(0, len(covers), ENCODE_BATCH):
        some = covers[start : start + ENCODE_BATCH]
        looks = np.array([cover.fixation for cover in some])
        noisy = patches[looks]
        for patch, cover in zip(noisy, some, strict=True):
            place = patch[:, cover.rows, cover.columns]
            place.copy_(torch.rand(place.shape, generator=generator))
        vectors.append(model.encode_looks(noisy, depth[looks]))
    return torch.cat(vectors)


def _log_odds(model: Model, trace: Trace, depth: int, label: int) -> float:
    logits = model.believe(trace, depth)[0].double()
    others = torch.arange(len(logits), device=logits.device) != label
    return float(logits[label] - torch.logsumexp(logits[others], 0))
