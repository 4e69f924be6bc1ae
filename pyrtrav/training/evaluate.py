"""A model over labelled images: what it believed and what it attended. Failed images count as wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrtrav.errors import PyramidError
from pyrtrav.methods import Model
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example
from pyrtrav.training.images import OpenImages


@dataclass(frozen=True)
class Evaluation:
    """Per image, in order."""

    probabilities: NDArray[np.float64]
    """(image, class), zeros where an image failed."""
    labels: NDArray[np.int64]
    cells: NDArray[np.float64]
    """(image, depth - 1): distinct cells attended at depths 1, 2, ..."""
    candidates: list[list[NDArray[np.float64]]]
    """For each depth of the deciding fixations, the largest probability of each distinct cell, batch by batch."""
    errors: dict[str, PyramidError]

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is theirs, 0..1."""
        alive = self.probabilities.sum(1) > 0
        return float(((self.probabilities.argmax(1) == self.labels) & alive).mean())

    @property
    def mean_cells(self) -> float:
        """Mean number of attended cells an image, the glance not counted."""
        return float(self.cells.sum(1).mean())


def evaluate(
    model: Model,
    examples: Sequence[Example],
    images: OpenImages,
    settings: Settings,
    *,
    batch_size: int = 16,
) -> Evaluation:
    """Run the model over examples. Draws depend on the settings' seed and the image's place in the list only."""
    was_training = model.training
    model.eval()
    depth = min(settings.depth, model.max_depth)
    probabilities, cells = [], []
    candidates: list[list[NDArray[np.float64]]] = [[] for _ in range(depth)]
    errors: dict[str, PyramidError] = {}
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        pyramids, failed = images.open_all([example.path for example in batch])
        errors.update(failed)
        here = [i for i, pyramid in enumerate(pyramids) if pyramid is not None]
        rows = torch.zeros(len(batch), len(images.classes), dtype=torch.float64)
        counts = np.zeros((len(batch), depth))
        if here:
            generators = [torch.Generator().manual_seed(settings.seed * 1_000_003 + start + i) for i in here]
            with torch.inference_mode():
                trace = model.look([p for p in pyramids if p is not None], settings, generators)
                rows[here] = torch.softmax(model.believe(trace, depth).double(), dim=1).cpu()
            for position, i in enumerate(here):
                failure = trace.errors[position]
                if failure is not None:
                    errors[batch[i].path] = failure
                    rows[i] = 0
                places = trace.fixation_place()[trace.image == position]
                own = trace.depth[trace.image == position][np.unique(places, return_index=True)[1]]
                counts[i] = np.bincount(own, minlength=depth + 1)[1 : depth + 1]
            for level in range(depth):
                candidates[level].append(trace.best_probabilities(level))
        probabilities.append(rows.numpy())
        cells.append(counts)
    model.train(was_training)
    return Evaluation(
        np.concatenate(probabilities),
        np.array([example.label for example in examples]),
        np.concatenate(cells),
        candidates,
        errors,
    )
