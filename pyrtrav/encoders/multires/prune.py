"""Smaller networks: resolutions, and layers at the end, that weigh little are no longer computed.

What is left out is as if its weight were zero; the rest weighs what it weighed, and is to be trained further.
"""

import copy
from collections.abc import Sequence

from pyrtrav.encoders.multires.blocks import Mixing
from pyrtrav.encoders.multires.encoder import MultiresEncoder
from pyrtrav.errors import ConfigError


def prune(encoder: MultiresEncoder, threshold: float) -> MultiresEncoder:
    """Return a copy that computes only what weighs ``threshold`` or more; of each mixture the heaviest is kept.

    Fixed mixtures stay as they are. Where the depth is learned, layers after the last output that is kept are removed.

    Raises:
        ConfigError: mixing weights are not learned, or a threshold outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"a threshold of mixing weights is within 0 and 1, got {threshold}")
    pruned = _copy(encoder)
    pruned.keep([_heavy(layer, threshold) for layer in encoder.mixtures()], _heavy(encoder.depth, threshold))
    return pruned


def prune_to_one(encoder: MultiresEncoder) -> MultiresEncoder:
    """Return a copy in which each layer computes the one resolution that weighs most; fixed mixtures stay.

    Raises:
        ConfigError: mixing weights are not learned.
    """
    pruned = _copy(encoder)
    pruned.keep([_heavy(layer, 1.0) for layer in encoder.mixtures()], encoder.outputs)
    return pruned


def _heavy(mixing: Mixing, threshold: float) -> Sequence[int]:
    """Return what is kept of a mixture: all of a fixed one, which would share out what is left out."""
    if mixing.logits is None:
        return mixing.kept
    weights = mixing.table().tolist()
    heavy = [number for number, weight in enumerate(weights) if weight >= threshold and weight > 0]
    return heavy or [weights.index(max(weights))]


def _copy(encoder: MultiresEncoder) -> MultiresEncoder:
    if not encoder.parts().mixing:
        raise ConfigError("this encoder's mixing weights are fixed: only a learned structure can be pruned")
    return copy.deepcopy(encoder)
