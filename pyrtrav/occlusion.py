"""Which places a prediction depends on: each is covered with noise by turns, and the prediction made again.

Source: "Multigrid Neural Architectures", figures 6 and 7: a square of uniform random noise is swept over the input.
Here it is swept over what was looked at: every look's patch is divided into squares, and a square is a place of the
image, so every look that shows it has noise there, in its own pixels. Where was looked at is held fixed. The patches
are read again, from tiles that the cache still holds: none is decoded twice unless the looks outgrew it.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.errors import ConfigError
from pyrtrav.methods.base import Model
from pyrtrav.sampling import Image
from pyrtrav.selection import Floats, Ints
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
    check_coverable(model)
    patches = model.patches([image], trace)
    if model.believe(trace, depth).shape[1] < 2:
        raise ConfigError("a model of a single class is always right: noise changes nothing")
    whole = _log_odds(model, trace, depth, label)
    generator = torch.Generator().manual_seed(seed)
    found = np.zeros((len(trace.image), squares, squares))
    for fixation in range(len(found)):
        covers = _covers(trace.region, fixation, squares, patches.shape[-1])
        vectors = _encode(model, patches, trace.depth, covers, generator)
        for square in range(squares**2):
            own = [i for i, cover in enumerate(covers) if cover.square == square]
            changed = trace.vector.clone()
            changed[[covers[i].fixation for i in own]] = vectors[own]
            there = _log_odds(model, trace.with_vectors(changed), depth, label)
            found[fixation, square // squares, square % squares] = whole - there
    return found


def check_coverable(model: Model) -> None:
    """Raise ConfigError where a model has no patches to cover, or sees them in the light of others."""
    if not model.has_patches:
        raise ConfigError("this model takes in the whole image at once, and has no looks that noise could cover")
    if not model.looks_alone:
        raise ConfigError(
            "with context=parent noise over a place also covers what surrounds other looks, which is not drawn yet; "
            "train with context=none to see it"
        )


def _covers(region: Floats, fixation: int, squares: int, size: int) -> list[_Cover]:
    """What of each look shows each square of one of them, looks that show none of its pixels' centres left out."""
    left, top, side, _ = region[fixation].tolist()
    edges = np.arange(squares + 1) * (side / squares)
    columns = pixels_before(region[:, 0], region[:, 2], size, left + edges)
    rows = pixels_before(region[:, 1], region[:, 3], size, top + edges)
    shows = (np.diff(rows) > 0)[:, :, None] & (np.diff(columns) > 0)[:, None, :]
    return [
        _Cover(
            row * squares + column,
            look,
            slice(int(rows[look, row]), int(rows[look, row + 1])),
            slice(int(columns[look, column]), int(columns[look, column + 1])),
        )
        for row, column, look in np.argwhere(shows.transpose(1, 2, 0)).tolist()
    ]


def pixels_before(start: Floats, length: Floats, size: int, places: Floats) -> Ints:
    """Return how many of a look's pixels, ``size`` along it, have their centres before each place.

    Args:
        start: (look,) of each look, in level-0 pixels.
        length: (look,)
        places: (place,) in level-0 pixels.
    """
    pixel = length[:, None] / size
    # What rounding alone adds is nothing.
    count = np.ceil((places - start[:, None]) / pixel - 0.5 - 1e-9)
    return count.clip(0, size).astype(np.int64)


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
