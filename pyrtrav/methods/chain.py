"""Looks of which each follows from the one before: what methods without a grid make."""

from collections.abc import Callable, Iterator

import numpy as np

from pyrtrav.geometry import Region
from pyrtrav.selection import Ints
from pyrtrav.trace import Trace
from pyrtrav.tree import Node


def chains(trace: Trace, depth: int) -> tuple[Ints, Ints]:
    """Return images without an error, of which none left early, and the first looks of each (image, look), in order."""
    none = np.zeros(0, np.int64), np.zeros((0, depth + 1), np.int64)
    return next(chains_by_length(trace, depth), none)


def chains_by_length(trace: Trace, depth: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the same of images that had equally many of the first ``depth + 1`` looks, the fewest first."""
    own = np.flatnonzero((trace.depth <= depth) & trace.alive[trace.image])
    order = own[np.lexsort((trace.depth[own], trace.image[own]))]
    looks = np.bincount(trace.image[own], minlength=trace.images)
    for count in np.unique(looks[looks > 0]).tolist():
        image = np.flatnonzero(looks == count)
        yield image, order[looks[trace.image[order]] == count].reshape(len(image), count)


def chain_contributions(
    trace: Trace, image: int, depth: int, log_probability: Callable[[Ints], float]
) -> list[float | None]:
    """Return what each look added: each after the first is left out by turns, the others lying where they lay.

    Args:
        depth: deeper looks say nothing.
        log_probability: of the class, in nats, from some of the image's looks in their order.
    """
    every = trace.fixations_of(image)
    own = every[trace.depth[every] <= depth]
    whole = log_probability(own)
    found: list[float | None] = [None] * len(every)
    for left in range(1, len(own)):
        found[left] = whole - log_probability(np.delete(own, left))
    return found


def chain_nodes(trace: Trace, image: int, base_resolution: int) -> tuple[Node, ...]:
    """Return the looks at one image as nodes; each has the one before as its parent."""
    regions = [Region(*row) for row in trace.region[trace.fixations_of(image)].tolist()]
    return tuple(
        Node(i, (i - 1,) if i else (), i, i, region, region.width / base_resolution, 1.0, None, ())
        for i, region in enumerate(regions)
    )
