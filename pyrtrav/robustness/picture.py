"""What a corruption works on, and the lengths that it is given in."""

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float64]
"""(height, width, channels) in 0..1."""

Random = np.random.Generator

PUBLISHED_SIDE = 224
"""Side in pixels of the pictures for which the published lengths were chosen."""


def scale_of(picture: Picture) -> float:
    """Return what lengths are multiplied by: the shorter side over the published one."""
    return float(min(picture.shape[:2])) / PUBLISHED_SIDE


def magnified(picture: Picture, factor: float) -> Picture:
    """Return the middle of a picture, magnified to the size of all of it."""
    size = picture.shape[:2]
    part = [max(2, int(np.ceil(length / factor))) for length in size]
    first = [(length - own) // 2 for length, own in zip(size, part, strict=True)]
    middle = picture[first[0] : first[0] + part[0], first[1] : first[1] + part[1]]
    at = [
        (own - 1) / 2 + (np.arange(length) - (length - 1) / 2) / factor for own, length in zip(part, size, strict=True)
    ]
    return _between(_between(middle, at[0], 0), at[1], 1)


def _between(picture: Picture, at: NDArray[np.float64], axis: int) -> Picture:
    """Interpolate linearly along an axis."""
    inside = at.clip(0, picture.shape[axis] - 1)
    low = np.minimum(inside.astype(np.int64), picture.shape[axis] - 2)
    share = (inside - low).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    below, above = np.take(picture, low, axis), np.take(picture, low + 1, axis)
    found: Picture = below + (above - below) * share
    return found
