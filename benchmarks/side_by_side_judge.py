"""How right a trained model is, and what it costs: as it is, stopped after each look, and with images that leave early.

Each function looks at one part of a data set and returns means over its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pyrtrav.exits import ExitTable, MeanBudget, at_depths, exit_depths, fit_thresholds, look_of
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import Ints, Settings
from pyrtrav.training.data import Dataset, Example
from pyrtrav.training.runs import Run, run_over

Point = dict[str, float]
"""Accuracy, looks and multiply-accumulates of an image in the mean."""

WAYS: dict[str, dict[str, tuple[str | None, Sequence[int]]]] = {
    "topdown": {"learned": (None, [0])},
    "mgnet": {"learned": (None, [0])},
    "gfnet": {"learned": (None, [0]), "random": ("random", [0, 1, 2]), "centre": ("centre", [0])},
}
"""Where to look, by method: a selection (None is the stored one), and the seeds of draws that nobody learned."""

BUDGETS = 8
"""Mean costs for which images are let go, from that of a glance to that of all looks."""


def judge(predictor: Predictor, dataset: Dataset, examples: Sequence[Example]) -> Point:
    """Look at each image by itself with nothing in the cache; with bytes, decoded pixels and seconds."""
    rows = []
    settings = predictor.settings()
    for example in examples:
        shared_cache().clear()
        (outcome,) = predictor.predict([example.path], settings)
        if outcome.error is not None:
            raise outcome.error
        cost = outcome.record["cost"]
        rows.append(
            {
                "accuracy": float(outcome.record["prediction"]["label"] == dataset.classes[example.label]),
                **{name: cost[name] for name in ("fixations", "macs", "pixels_decoded", "bytes_read")},
                "seconds": cost["seconds"]["total"],
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def curves(predictor: Predictor, examples: Sequence[Example]) -> dict[str, list[Point]]:
    """Return for each way of looking what a run has after each depth, and what images that leave early have.

    None of a method that looks once.
    """
    labels = np.array([example.label for example in examples])
    found: dict[str, list[Point]] = {}
    for way, (select, seeds) in WAYS.get(predictor.card.method, {}).items():
        runs = [_run(predictor, examples, predictor.settings(select=select, seed=seed)) for seed in seeds]
        each = [[_point(run, labels, np.full(len(labels), depth)) for depth in _depths(run)] for run in runs]
        found[way] = mean_points(each)
        if select is None:
            found["early exit"] = early_exits(runs[0], labels)
    return found


def early_exits(run: Run, labels: Ints) -> list[Point]:
    """Return what thresholds fitted to ever higher mean costs bring on images that they were not fitted on.

    They are fitted on every other image and judged on the rest, and the other way round.
    """
    confidence, costs = run.probabilities.max(2), run.costs["judged_macs"]
    halves = [np.arange(start, len(labels), 2) for start in (0, 1)]
    points = []
    for amount in np.linspace(costs[0].max(), costs[-1].mean(), BUDGETS).tolist():
        left = np.zeros(len(labels), np.int64)
        for own, others in (halves, halves[::-1]):
            table = ExitTable(look_of(run.settings), confidence[:, own], {"macs": costs[:, own]})
            left[others] = exit_depths(confidence[:, others], fit_thresholds(table, MeanBudget(amount, "macs")))
        points.append(_point(run, labels, left))
    return points


def _run(predictor: Predictor, examples: Sequence[Example], settings: Settings) -> Run:
    run = run_over(predictor, examples, settings)
    for error in run.errors.values():
        raise error
    return run


def _depths(run: Run) -> range:
    return range(len(run.probabilities))


def _point(run: Run, labels: Ints, depths: Ints) -> Point:
    """When each image stops at its depth."""
    believed = run.probabilities[depths, np.arange(len(labels))].argmax(1)
    costs = {"fixations": run.costs["fixations"], "macs": run.costs["judged_macs"]}
    means = {name: float(at_depths(values, depths).mean()) for name, values in costs.items()}
    return {"accuracy": float((believed == labels).mean()), **means}


def mean_points(curves: Iterable[Sequence[Point]]) -> list[Point]:
    """Return the mean of curves, point by point."""
    return [
        {name: float(np.mean([one[name] for one in same])) for name in same[0]} for same in zip(*curves, strict=True)
    ]
