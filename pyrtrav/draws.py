"""Random numbers that decide where to look: for a batch, or of each image's own, whatever else is in the batch."""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import torch

from pyrtrav.selection import Floats, Ints
from pyrtrav.trace import Trace

Draws = Callable[[Trace, Ints, Ints], Floats]
"""(trace, parents, cells) -> uniforms in 0..1 on the edge axis; an edge is on where its draw is below its
probability."""

Generators = torch.Generator | Sequence[torch.Generator] | Draws
"""One for the batch (training), one for each image, so that draws do not depend on what else is in the batch, or any
function that gives the draws."""


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
