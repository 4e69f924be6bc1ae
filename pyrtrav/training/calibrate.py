"""The selection that a trained model uses by default: thresholds that attend as much as its own draws do.

A policy is trained by sampling, but a user wants the same answer twice. One threshold a depth is fitted, coarse to
fine, so that the mean number of distinct cells at that depth equals the sampled mean. A plain 0.5 would pick nothing
where a policy is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyrtrav.methods import Model
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example
from pyrtrav.training.evaluate import Evaluation, evaluate
from pyrtrav.training.images import OpenImages

TOLERANCE = 0.15
"""A fit that misses the sampled mean by more is no fit: then a budget takes its place."""


@dataclass(frozen=True)
class Calibration:
    """A stored selection, and what sampling and that selection reached on the validation images."""

    selection: dict[str, Any]
    sampled: tuple[Evaluation, ...]
    """One evaluation a draw."""
    stored: Evaluation

    @property
    def sampled_cells(self) -> float:
        """Mean number of cells that sampling attends, over all draws."""
        return float(np.mean([run.mean_cells for run in self.sampled]))

    @property
    def sampled_accuracy(self) -> float:
        """Mean accuracy of a single draw."""
        return float(np.mean([run.accuracy for run in self.sampled]))


def calibrate(
    model: Model, examples: Sequence[Example], images: OpenImages, settings: Settings, *, draws: int = 4
) -> Calibration:
    """Fit the default selection on validation examples; ``settings`` are those of training (``sample``)."""
    if settings.depth == 0 or not model.grid_cells:  # nothing to select
        only = evaluate(model, examples, images, replace(settings, select="all"))
        return Calibration({"select": "all"}, (only,), only)
    sampled = tuple(evaluate(model, examples, images, replace(settings, seed=settings.seed + i)) for i in range(draws))
    wanted = np.mean([run.cells for run in sampled], axis=0).mean(0)
    taus: list[float] = []
    for depth in range(settings.depth):
        # The last threshold serves the depths below, whose decisions are not used here.
        known = replace(settings, select="threshold", tau=(*taus, 1.0), depth=depth + 1)
        seen = evaluate(model, examples, images, known)
        taus.append(threshold_for(seen.candidates[depth], wanted[depth] * len(examples)))
    fitted = replace(settings, select="threshold", tau=tuple(taus))
    stored = evaluate(model, examples, images, fitted)
    found = Calibration({"select": "threshold", "tau": taus}, sampled, stored)
    if abs(stored.mean_cells - found.sampled_cells) <= TOLERANCE * found.sampled_cells:
        return found
    budget = budget_for(found.sampled_cells)
    by_budget = evaluate(model, examples, images, replace(settings, select="budget", budget=budget))
    return Calibration({"select": "budget", "budget": budget}, sampled, by_budget)


def budget_for(cells: float) -> int:
    """The rounded mean number of attended cells, and the glance."""
    return round(cells) + 1


def threshold_for(candidates: Sequence[np.ndarray[Any, Any]], wanted: float) -> float:
    """Return the threshold above which about ``wanted`` of all candidates lie, halfway between two of them."""
    values = np.sort(np.concatenate([*candidates, np.zeros(0)]))[::-1]
    count = min(max(round(wanted), 0), len(values))
    above = values[count - 1] if count else 1.0
    below = values[count] if count < len(values) else 0.0
    return float((above + below) / 2)
