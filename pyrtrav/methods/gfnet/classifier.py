"""What is believed after each look: by a recurrent classifier, or by a cascade of linear ones."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.encoders.base import init_xavier
from pyrtrav.methods.gfnet.proposal import gru_macs


class Classifier(nn.Module):
    """Maps the vectors of the looks so far to logits, after each of them."""

    @abstractmethod
    def forward(self, vectors: Float[Tensor, "image look channel"]) -> Float[Tensor, "image look label"]:
        """Return the logits after each look."""

    @abstractmethod
    def macs(self, look: int) -> int:
        """Multiply-accumulates of the look with this number, from 0."""


class RecurrentClassifier(Classifier):
    """A GRU and a linear layer."""

    def __init__(self, size: int, units: int, classes: int) -> None:
        super().__init__()
        self.remember = nn.GRUCell(size, units)
        self.linear = nn.Linear(units, classes)
        init_xavier(self)

    def forward(self, vectors: Float[Tensor, "image look channel"]) -> Float[Tensor, "image look label"]:
        state, logits = None, []
        for vector in vectors.unbind(1):
            state = self.remember(vector, state)
            logits.append(self.linear(state))
        return torch.stack(logits, dim=1)

    def macs(self, look: int) -> int:
        return gru_macs(self.remember) + self.linear.weight.numel()


class CascadedClassifier(Classifier):
    """A linear layer for each number of looks, over the vectors of all of them."""

    def __init__(self, size: int, looks: int, classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(size * (look + 1), classes) for look in range(looks))
        init_xavier(self)

    def forward(self, vectors: Float[Tensor, "image look channel"]) -> Float[Tensor, "image look label"]:
        looks = range(vectors.shape[1])
        return torch.stack([self.linears[look](vectors[:, : look + 1].flatten(1)) for look in looks], dim=1)

    def macs(self, look: int) -> int:
        linear = self.linears[look]
        assert isinstance(linear, nn.Linear)
        return linear.weight.numel()
