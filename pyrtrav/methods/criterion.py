"""What a prediction is worth in training: the log-likelihood of the label, smoothed and weighted."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrtrav.errors import ConfigError


@dataclass(frozen=True)
class Criterion:
    """Scores beliefs against labels; the same for every method. By default the plain log-likelihood."""

    smoothing: float = 0.0
    """Share of a label's weight that goes to all classes alike, 0 to 1."""
    weights: tuple[float, ...] | None = None
    """One factor a class; None for all alike."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"label_smoothing must be 0 or more and below 1, got {self.smoothing}")

    def __call__(self, logits: Float[Tensor, "image label"], target: Int[Tensor, " image"]) -> Float[Tensor, " image"]:
        """Return each image's value, to be maximised; a batch's is their mean, not weighted again."""
        log_p = torch.log_softmax(logits, dim=1)
        value = log_p.gather(1, target[:, None])[:, 0]
        if self.smoothing:
            value = (1 - self.smoothing) * value + self.smoothing * log_p.mean(1)
        if self.weights is not None:
            value = value * logits.new_tensor(self.weights)[target]
        return value
