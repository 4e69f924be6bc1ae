"""How good beliefs are: every metric that is logged or reported, defined once, computed by torchmetrics."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CALIBRATION_BINS = 15


def classification_metrics(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of beliefs about images.

    ``accuracy``: share of right answers. ``balanced_accuracy``: mean over classes of the share of right answers.
    ``auroc``: mean over classes of the area under the curve, one class against the rest; NaN where a class is missing.
    ``f1``: mean over classes. ``calibration_error``: expected, of the first answer's probability, in 15 bins.

    Args:
        probabilities: (image, class), rows sum to 1.
        labels: (image), indices of classes.
    """
    # Loading it takes seconds, which a training should not wait for before its first step.
    metrics: Any = importlib.import_module("torchmetrics.functional.classification")
    believed, target = torch.from_numpy(probabilities), torch.from_numpy(labels)
    classes = probabilities.shape[1]
    present = np.unique(labels)
    with warnings.catch_warnings():
        # A class without images has no curve; said by NaN below.
        warnings.simplefilter("ignore")
        each = metrics.multiclass_auroc(believed, target, classes, average=None)
        values = {
            "accuracy": metrics.multiclass_accuracy(believed, target, classes, average="micro"),
            "balanced_accuracy": metrics.multiclass_accuracy(believed, target, classes, average="macro"),
            "auroc": each.mean() if len(present) == classes else torch.tensor(torch.nan),
            "f1": metrics.multiclass_f1_score(believed, target, classes, average="macro"),
            "calibration_error": metrics.multiclass_calibration_error(
                believed, target, classes, n_bins=CALIBRATION_BINS
            ),
        }
    return {name: float(value) for name, value in values.items()}
