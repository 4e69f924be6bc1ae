"""Class weights: as given, or so that every class counts alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pyrtrav.errors import ConfigError
from pyrtrav.training.options import ClassWeights


def class_weights(asked: ClassWeights, labels: Sequence[int], classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return one factor a class whose mean over the training images is 1, so that losses keep their scale.

    Args:
        asked: ``none``, ``balanced`` (every class counts alike, however many images it has), or numbers, one a class.
        labels: of the training images, as indices into the classes.
        classes: names, in order.

    Raises:
        ConfigError: not one number a class, or one that is not above 0.
    """
    if asked == "none":
        return None
    counts = np.bincount(labels, minlength=len(classes))
    if asked == "balanced":
        given = 1 / np.maximum(counts, 1)
    else:
        given = np.array(asked, np.float64)
        if len(given) != len(classes):
            raise ConfigError(
                f"class_weights has {len(given)} numbers for {len(classes)} classes: {', '.join(classes)}"
            )
        if not all(weight > 0 and math.isfinite(weight) for weight in given.tolist()):
            raise ConfigError(f"class_weights must be above 0, got {list(given)}")
    scale = counts.sum() / (given * counts).sum()
    return tuple((given * scale).tolist())
