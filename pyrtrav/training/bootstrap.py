"""How far the figures of an evaluation may be off: percentile intervals of the bootstrap.

Images are drawn with replacement, 1,000 times; where images come in groups (patients), groups are drawn, because the
images of one patient are no independent witnesses. A resample is a count of how often each image was drawn, so that all
of them are computed together; the figures are those of ``metrics.classification_metrics``, with the same rules for
failed images and for classes that a resample lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pyrtrav.training.metrics import (
    BINS,
    METRICS,
    Labels,
    Probabilities,
    class_ranks,
    failed_images,
    predicted_classes,
)

RESAMPLES = 1000
LEVEL = 0.95

Floats = NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""From draws (resample, image) to a figure of each resample, nan where it is not defined."""

_HELD = 4_000_000
"""Counts of draws held at once."""


def bootstrap_intervals(
    probabilities: Probabilities,
    labels: Labels,
    groups: Sequence[str | None] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of every metric: the 2.5 and 97.5 percentiles over resamples.

    Args:
        probabilities, labels: as for ``classification_metrics``.
        groups: (image,) what each image belongs to; None is a group of its own.
        seed: the same one draws the same images, so that evaluations of the same images compare draw by draw.

    Resamples in which a metric is not defined are left out of its interval; nan where that leaves none.
    """
    figures = _figures(probabilities, labels)
    found: dict[str, list[Floats]] = {name: [] for name in METRICS}
    for draws in _draws(unit_numbers(groups, len(labels)), seed, resamples):
        for name in METRICS:
            found[name].append(figures[name](draws))
    return {name: _interval(np.concatenate(found[name])) for name in METRICS}


def unit_numbers(groups: Sequence[str | None] | None, images: int) -> NDArray[np.int64]:
    """Return for each image the number of the unit that is drawn: its group, or itself."""
    if groups is None:
        return np.arange(images)
    names: dict[object, int] = {}
    units = [(None, i) if group is None else group for i, group in enumerate(groups)]
    return np.array([names.setdefault(unit, len(names)) for unit in units], np.int64)


def _draws(units: NDArray[np.int64], seed: int, resamples: int) -> Iterator[Floats]:
    """How often each image is drawn (resample, image), some resamples at a time."""
    random = np.random.default_rng(seed)
    count = int(units.max()) + 1
    at_once = max(1, _HELD // len(units))
    for start in range(0, resamples, at_once):
        here = min(at_once, resamples - start)
        yield random.multinomial(count, np.full(count, 1 / count), size=here)[:, units].astype(np.float64)


def _interval(values: Floats) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _figures(probabilities: Probabilities, labels: Labels) -> dict[str, Figure]:
    classes = probabilities.shape[1]
    truth = labels[:, None] == np.arange(classes)
    predicted = predicted_classes(probabilities)[:, None] == np.arange(classes)
    correct = (truth & predicted).any(1)

    def accuracy(draws: Floats) -> Floats:
        return _divided(draws @ correct, draws.sum(1))

    def balanced_accuracy(draws: Floats) -> Floats:
        return _mean_defined(_divided(draws @ (truth & predicted), draws @ truth))

    def f1(draws: Floats) -> Floats:
        images = draws @ truth
        score = _divided(2 * (draws @ (truth & predicted)), images + draws @ predicted)
        return _mean_defined(np.where(images > 0, score, np.nan))

    auroc = _auroc(class_ranks(probabilities, labels), truth)
    calibration_error = _calibration_error(probabilities, correct)
    return dict(zip(METRICS, (accuracy, balanced_accuracy, auroc, f1, calibration_error), strict=True))


def _auroc(ranks: NDArray[np.int64], truth: NDArray[np.bool_]) -> Figure:
    """The share of pairs (one of the class, one of the rest) that are ranked rightly, equal ones half."""

    def figure(draws: Floats) -> Floats:
        by_class = []
        for rank, own in zip(ranks.T, truth.T, strict=True):
            order = np.argsort(rank, kind="stable")
            starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
            inside = np.add.reduceat(draws[:, order] * own[order], starts, axis=1)
            outside = np.add.reduceat(draws[:, order] * ~own[order], starts, axis=1)
            below = np.cumsum(outside, axis=1) - outside / 2
            by_class.append(_divided((inside * below).sum(1), inside.sum(1) * outside.sum(1)))
        return _mean_defined(np.stack(by_class, axis=1))

    return figure


def _calibration_error(probabilities: Probabilities, correct: NDArray[np.bool_]) -> Figure:
    """The mean distance of confidence and accuracy over bins, weighted by their images."""
    alive = ~failed_images(probabilities)
    # Single precision and these edges are torchmetrics': a confidence of 0.6 lies on an edge.
    confidence = probabilities.max(1).astype(np.float32)
    edges = torch.linspace(0, 1, BINS + 1).numpy()
    bins = (np.searchsorted(edges, confidence, side="right") - 1)[:, None] == np.arange(BINS + 1)
    gap = np.where(alive, correct - confidence.astype(np.float64), 0.0)[:, None] * bins

    def figure(draws: Floats) -> Floats:
        return _divided(np.abs(draws @ gap).sum(1), draws @ alive)

    return figure


def _divided(part: Floats, whole: Floats) -> Floats:
    """nan where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean_defined(values: Floats) -> Floats:
    """The mean over classes (resample, class) of those that are defined."""
    defined = ~np.isnan(values)
    return _divided(np.where(defined, values, 0.0).sum(1), defined.sum(1).astype(np.float64))
