"""Smaller networks: resolutions, and layers at the end, that weigh little are no longer computed.

What is left out is as if its weight were zero; the rest weighs what it weighed, and is to be trained further.
"""

import copy

from pyrtrav.encoders.multires.encoder import MultiresEncoder
from pyrtrav.errors import ConfigError


def prune(encoder: MultiresEncoder, threshold: float) -> MultiresEncoder:
    """Return a copy that computes only what weighs ``threshold`` or more; of each mixture the heaviest is kept.

    Where the depth is learned, layers after the last output that is kept are removed.

    Raises:
        ConfigError: mixing weights are not learned, or a threshold outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"a threshold of mixing weights is within 0 and 1, got {threshold}")
    pruned = _copy(encoder)
    kept = [_heavy(row, threshold) for row in encoder.mixing_table().tolist()]
    outputs = _heavy(encoder.depth.table().tolist(), threshold)
    pruned.keep(kept, outputs)
    return pruned


def prune_to_one(encoder: MultiresEncoder) -> MultiresEncoder:
    """Return a copy in which each layer computes the one resolution that weighs most.

    Raises:
        ConfigError: mixing weights are not learned.
    """
    pruned = _copy(encoder)
    pruned.keep([_heavy(row, 1.0) for row in encoder.mixing_table().tolist()], encoder.outputs)
    return pruned


def _heavy(weights: list[float], threshold: float) -> list[int]:
    heavy = [number for number, weight in enumerate(weights) if weight >= threshold and weight > 0]
    return heavy or [weights.index(max(weights))]


def _copy(encoder: MultiresEncoder) -> MultiresEncoder:
    if not encoder.parts().mixing:
        raise ConfigError("this encoder's mixing weights are fixed: only a learned structure can be pruned")
    return copy.deepcopy(encoder)
