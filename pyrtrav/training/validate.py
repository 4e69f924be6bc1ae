"""What a model reaches on validation images, as the log says it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyrtrav.methods import Model
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example
from pyrtrav.training.evaluate import evaluate
from pyrtrav.training.images import OpenImages
from pyrtrav.training.metrics import classification_metrics


def validate(model: Model, examples: Sequence[Example], images: OpenImages, settings: Settings) -> dict[str, float]:
    """Return ``val_loss``, ``val_cells``, ``val_failed`` (where images failed) and the classification metrics.

    An image that cannot be read counts as sure of a wrong class; the loss, which would be infinite, leaves it out.
    """
    found = evaluate(model, examples, images, settings)
    classes = found.probabilities.shape[1]
    seen = found.probabilities.sum(1) > 0
    wrong = np.eye(classes)[(found.labels + 1) % classes]
    believed = np.where(seen[:, None], found.probabilities, wrong)
    chosen = found.probabilities[seen, found.labels[seen]]
    values = {
        "loss": -float(np.log(np.maximum(chosen, 1e-300)).mean()) if seen.any() else float("nan"),
        **classification_metrics(believed, found.labels),
        "cells": found.mean_cells,
        **({"failed": float(len(found.errors))} if found.errors else {}),
    }
    return {f"val_{name}": value for name, value in values.items()}
