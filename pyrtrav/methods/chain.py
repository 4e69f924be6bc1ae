"""Looks of which each follows from the one before: what methods without a grid make."""

import numpy as np

from pyrtrav.geometry import Region
from pyrtrav.selection import Ints
from pyrtrav.trace import Trace
from pyrtrav.tree import Node


def chains(trace: Trace, depth: int) -> tuple[Ints, Ints]:
    """Return images without an error, and the first ``depth + 1`` looks of each (image, look), in order."""
    own = np.flatnonzero((trace.depth <= depth) & trace.alive[trace.image])
    order = own[np.lexsort((trace.depth[own], trace.image[own]))]
    image = np.flatnonzero(trace.alive)
    return image, order.reshape(len(image), len(order) // len(image) if len(image) else depth + 1)


def chain_nodes(trace: Trace, image: int, base_resolution: int) -> tuple[Node, ...]:
    """Return the looks at one image as nodes; each has the one before as its parent."""
    regions = [Region(*row) for row in trace.region[trace.fixations_of(image)].tolist()]
    return tuple(
        Node(i, (i - 1,) if i else (), i, i, region, region.width / base_resolution, 1.0, None, ())
        for i, region in enumerate(regions)
    )
