"""Intersection over union and error of labels for every pixel, as tables 2 and 3 of the multigrid paper have them.

Outputs are labels where their probability is at least a half; all pixels of all images are counted together for each
output, and the outputs averaged. There is no class for the background: it is where no output is a label. The paper's
"mean Error" is the share of an output's labels that are wrong, 1 - precision: in the authors' notebook the figures of
R-PMG-20 come from that. What a network leaves unlabelled does not count there, so that the share of missed pixels and
that of wholly right ones stand beside it here.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Scores:
    """Counts over batches.

    Args:
        outputs: number of labels.
    """

    def __init__(self, outputs: int) -> None:
        self.right, self.found, self.true = (torch.zeros(outputs, dtype=torch.int64) for _ in range(3))
        self.whole, self.pixels = 0, 0

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: (image, output, row, column)."""
        labels, truth = logits >= 0, targets > 0.5
        for count, where in ((self.right, labels & truth), (self.found, labels), (self.true, truth)):
            count += where.sum((0, 2, 3)).cpu()
        self.whole += int((labels == truth).all(1).sum())
        self.pixels += labels[:, 0].numel()

    def values(self) -> dict[str, float]:
        """Return shares: ``iou`` and ``error`` as the paper, ``missed`` true labels, ``pixels`` right in all outputs.

        Where an output has no labels at all its error is 1, and nothing of what does not exist is missed.
        """
        union = self.found + self.true - self.right
        return {
            "iou": float(_share(self.right, union).mean()),
            "error": float(1 - _share(self.right, self.found).mean()),
            "missed": float(_share(self.true - self.right, self.true).mean()),
            "pixels": self.whole / max(1, self.pixels),
        }


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.clamp(min=1)
