"""Differences of accuracies, with what chance could make of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

REPRODUCED, NOT, UNDECIDED = "reproduced", "**not**", "undecided"

CERTAIN = 2.0
"""Standard errors that a difference must have to count."""


@dataclass(frozen=True)
class Difference:
    """Of two accuracies, 0..1, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f} points"

    def above(self, least: float = 0.0) -> str:
        """Return whether it is above this: a verdict."""
        if abs(self.value - least) <= CERTAIN * self.error:
            return UNDECIDED
        return REPRODUCED if self.value > least else NOT


def paired(gaps: NDArray[np.float64]) -> Difference:
    """Return the mean difference of (seed, image): on the same images.

    The error is that of the images; with several seeds that between seeds where it is larger.
    """
    error = float(gaps.mean(0).std()) / math.sqrt(gaps.shape[1])
    if len(gaps) > 1:
        error = max(error, stdev(gaps.mean(1).tolist()) / math.sqrt(len(gaps)))
    return Difference(float(gaps.mean()), error)


def of_shares(one: float, other: float, count: int) -> Difference:
    """Return the difference of two shares of ``count`` images each."""
    return Difference(one - other, math.sqrt((one * (1 - one) + other * (1 - other)) / count))
