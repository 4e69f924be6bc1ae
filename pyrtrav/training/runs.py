"""A model over labelled images in one way of looking: what it believed after each depth, and what that cost.

The images go through the function that classifies and explains, a few at a time; of each only numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import PyrtravError
from pyrtrav.predict import IMAGES_AT_ONCE, Outcome, Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example

COSTS = ("fixations", "macs", "pixels_decoded", "seconds")
EXIT_COSTS = ("judged_macs", "bytes_read")
"""Further ones, which thresholds of early exit are fitted on; nan where the bytes are unknown."""


@dataclass(frozen=True)
class Run:
    """What came of all images, in order."""

    settings: Settings
    probabilities: NDArray[np.float64]
    """(depth, image, class): beliefs after each depth, or where the image ends before it; zeros where it failed."""
    costs: dict[str, NDArray[np.float64]]
    """By name in ``COSTS`` and ``EXIT_COSTS`` (depth, image): of the looks down to each depth; nan where it failed."""
    depths: NDArray[np.int64]
    """(image,) how deep an image goes; -1 where it failed."""
    errors: dict[int, PyrtravError]
    """By image, why it failed."""

    @property
    def final(self) -> NDArray[np.float64]:
        """(image, class): what the image is classified by."""
        last: NDArray[np.float64] = self.probabilities[-1]
        return last


def run_over(
    predictor: Predictor,
    examples: Sequence[Example],
    settings: Settings,
    *,
    mpp: float | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Run:
    """Classify the images with these settings; what cannot be opened or read is noted and left behind."""
    # What an earlier run decoded would make the seconds of this one those of a second look.
    shared_cache().clear()
    beliefs: list[NDArray[np.float64]] = []
    costs: list[NDArray[np.float64]] = []
    errors: dict[int, PyrtravError] = {}
    for start in range(0, len(examples), IMAGES_AT_ONCE):
        batch = [example.path for example in examples[start : start + IMAGES_AT_ONCE]]
        outcomes = predictor.predict_with_costs(batch, settings, mpp=mpp)
        for number, (outcome, by_depth) in enumerate(outcomes, start):
            if outcome.error is not None:
                errors[number] = outcome.error
            beliefs.append(_beliefs(outcome, predictor.card.classes))
            rows = [[getattr(cost, name) for name in (*COSTS, *EXIT_COSTS)] for cost in by_depth]
            costs.append(np.array(rows, np.float64))
        if on_images is not None:
            on_images(len(batch))
    return _gathered(settings, beliefs, costs, errors, len(predictor.card.classes))


def _beliefs(outcome: Outcome, classes: Sequence[str]) -> NDArray[np.float64]:
    """(depth, class), without a row where the image failed."""
    levels = outcome.record.get("levels", ())
    return np.array([[level["probabilities"][name] for name in classes] for level in levels])


def _gathered(
    settings: Settings,
    beliefs: Sequence[NDArray[np.float64]],
    costs: Sequence[NDArray[np.float64]],
    errors: dict[int, PyrtravError],
    classes: int,
) -> Run:
    """Put images of different depths side by side: below its own depth an image stays as it is."""
    depths = np.array([len(rows) - 1 for rows in beliefs])
    count = int(max(depths.max(initial=0), 0)) + 1
    probabilities = np.zeros((count, len(beliefs), classes))
    names = (*COSTS, *EXIT_COSTS)
    cost = np.full((len(names), count, len(beliefs)), np.nan)
    for number, depth in enumerate(depths.tolist()):
        if depth >= 0:
            reached = np.minimum(np.arange(count), depth)
            probabilities[:, number] = beliefs[number][reached]
            cost[:, :, number] = costs[number][reached].T
    return Run(settings, probabilities, dict(zip(names, cost, strict=True)), depths, errors)
