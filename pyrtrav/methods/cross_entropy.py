"""What trains a method that has one prediction and decides nothing: the labels' likelihood alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrtrav.draws import Generators
from pyrtrav.methods.base import Metrics, Model, Objective
from pyrtrav.policy_gradient import batch_mean, log_likelihood
from pyrtrav.sampling import Image
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace


class CrossEntropy(Objective):
    """The negative log-likelihood of the labels."""

    def look(self, model: Model, images: Sequence[Image], generator: Generators) -> Trace:
        """Return what a training step looks at: everything."""
        return model.look(images, Settings(select="all"))

    def forward(
        self,
        model: Model,
        images: Sequence[Image],
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        trace = self.look(model, images, generator)
        alive = torch.from_numpy(np.flatnonzero(trace.alive)).to(trace.device)
        logits, target = model.believe(trace, 0)[alive], labels.to(trace.device)[alive]
        loss = -batch_mean(self.criterion(logits, target))
        plain = -float(log_likelihood(logits.detach(), target).mean())
        correct = (logits.argmax(1) == target).double().mean()
        return loss, {"loss": plain, "accuracy": float(correct)}, trace
