"""How right a classifier is: figures of its probabilities, and the same by class.

An image that failed has a row of zeros, and counts as wrong wherever that has a meaning: it is missed in accuracy,
recall and F1, and in AUROC it is ranked below all others for its own class and above them for every other. The
calibration error is about stated confidences, of which it has none: there it is left out.

A class without images has no recall, F1 or AUROC; it is left out of the means over classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1", "calibration_error")

BINS = 15
"""Of the calibration error, equally wide from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class against all others; nan where there is nothing to divide by."""

    images: int
    predicted: int
    """Images taken for this class."""
    recall: float
    """Share of the class's images that were recognised: the sensitivity."""
    specificity: float
    """Share of the other images that were not taken for it; a failed one was not."""
    precision: float
    """Share of the images taken for it that are."""
    f1: float
    auroc: float


def failed_images(probabilities: Probabilities) -> NDArray[np.bool_]:
    """Return which images have no probabilities (image, class): a row of zeros."""
    failed: NDArray[np.bool_] = ~(probabilities.sum(1) > 0)
    return failed


def predicted_classes(probabilities: Probabilities) -> Labels:
    """Return the most probable class of each image, the first of equals; the number of classes where it failed."""
    predicted: Labels = np.where(failed_images(probabilities), probabilities.shape[1], probabilities.argmax(1))
    return predicted


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Return counts (true class, predicted class); the last column counts failed images."""
    classes = probabilities.shape[1]
    cells = np.bincount(labels * (classes + 1) + predicted_classes(probabilities), minlength=classes * (classes + 1))
    return cells.reshape(classes, classes + 1)


def classification_metrics(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """Return accuracy, balanced accuracy, AUROC, F1 and calibration error, as torchmetrics computes them.

    Args:
        probabilities: (image, class), rows that sum to 1; a row of zeros is a failed image, which counts as wrong in
            all but the calibration error.
        labels: (image,), indices of classes.

    Returns:
        Each 0..1, nan where nothing defines it. ``balanced_accuracy`` is the mean recall, ``auroc`` the mean of each
        class against the rest, ``f1`` the mean of the classes' F1; the means are over classes that have images
        (and, for AUROC, that not all images have). ``calibration_error`` is the expected one (ECE) of 15 bins.
    """
    # Takes seconds to import, and only those who evaluate need it.
    from torchmetrics.functional import classification as tm

    classes = probabilities.shape[1]
    target, predicted = torch.from_numpy(labels), torch.from_numpy(predicted_classes(probabilities))
    # A failed image is predicted as a class that no image has.
    recall = tm.multiclass_recall(predicted, target, classes + 1, average="none")
    f1 = tm.multiclass_f1_score(predicted, target, classes + 1, average="none")
    present = torch.from_numpy(np.bincount(labels, minlength=classes + 1) > 0)
    alive = torch.from_numpy(~failed_images(probabilities))
    calibration = float("nan")
    if alive.any():
        stated = torch.from_numpy(probabilities)[alive]
        calibration = float(tm.multiclass_calibration_error(stated, target[alive], classes, n_bins=BINS))
    return {
        "accuracy": float(tm.multiclass_accuracy(predicted, target, classes + 1, average="micro")),
        "balanced_accuracy": float(recall[present].double().mean()),
        "auroc": _mean(class_aurocs(probabilities, labels)),
        "f1": float(f1[present].double().mean()),
        "calibration_error": calibration,
    }


def class_aurocs(probabilities: Probabilities, labels: Labels) -> list[float]:
    """Return the area under the ROC curve of each class against the rest; nan where one of the two is missing."""
    from torchmetrics.functional.classification import binary_auroc

    ranks = class_ranks(probabilities, labels)
    scores = torch.from_numpy(ranks / max(ranks.max(initial=1), 1))
    areas = []
    for number in range(probabilities.shape[1]):
        target = torch.from_numpy((labels == number).astype(np.int64))
        both = 0 < int(target.sum()) < len(target)
        areas.append(float(binary_auroc(scores[:, number], target)) if both else float("nan"))
    return areas


def class_ranks(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Return the rank (image, class) of each image for each class, from 0, equal where probabilities are.

    A failed image is ranked as wrongly as can be.
    """
    failed = failed_images(probabilities)
    ranks = np.empty(probabilities.shape, np.int64)
    for number in range(probabilities.shape[1]):
        ranks[:, number] = np.unique(probabilities[:, number], return_inverse=True)[1] + 1
        ranks[failed, number] = np.where(labels[failed] == number, 0, len(labels) + 1)
    return ranks


def metrics_by_class(probabilities: Probabilities, labels: Labels) -> list[ClassMetrics]:
    """Return the figures of each class against the rest."""
    confusion = confusion_matrix(probabilities, labels)
    classes, total = len(confusion), int(confusion.sum())
    areas = class_aurocs(probabilities, labels)
    found = []
    for number in range(classes):
        images, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
        right = int(confusion[number, number])
        found.append(
            ClassMetrics(
                images,
                predicted,
                _ratio(right, images),
                1 - _ratio(predicted - right, total - images),
                _ratio(right, predicted),
                _ratio(2 * right, images + predicted) if images else float("nan"),
                areas[number],
            )
        )
    return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: list[float]) -> float:
    """Of the defined ones."""
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")
