"""Where to look next: an actor and a critic over one recurrent state, fed with the maps of the looks so far."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder, count_macs, init_xavier

SEEN_CHANNELS = 32


class Proposed(NamedTuple):
    """What the policy says after a look at each image."""

    mean: Float[Tensor, "image 2"]
    """Of the Gaussian of the next place (x, y): shares, 0..1, of the range that a patch's corner has."""
    value: Float[Tensor, " image"]
    """What the critic expects of the looks to come."""
    state: Float[Tensor, "image unit"]
    """To be given back after the next look."""


class PatchProposal(nn.Module):
    """The patch proposal network pi: a 1 x 1 convolution and a linear layer, a GRU, and the two last layers."""

    def __init__(self, encoder: Encoder, units: int) -> None:
        """Take maps as the encoder makes them."""
        super().__init__()
        rows, columns = encoder.map_size
        self._map_shape = encoder.map_channels, rows, columns
        self.see = nn.Sequential(
            nn.Conv2d(encoder.map_channels, SEEN_CHANNELS, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(SEEN_CHANNELS * rows * columns, units),
            nn.ReLU(),
        )
        self.remember = nn.GRUCell(units, units)
        self.actor = nn.Linear(units, 2)
        self.critic = nn.Linear(units, 1)
        init_xavier(self)

    def forward(
        self, map_: Float[Tensor, "image channel row column"], state: Float[Tensor, "image unit"] | None
    ) -> Proposed:
        """Return what follows from a look's map, and from the state after the looks before; None before the first."""
        state = self.remember(self.see(map_), state)
        return Proposed(torch.sigmoid(self.actor(state)), self.critic(state)[:, 0], state)

    def retrace(
        self, maps: Sequence[Float[Tensor, "image channel row column"]]
    ) -> tuple[Float[Tensor, "image step 2"], Float[Tensor, "image step"]]:
        """Return the means and values after each of a sequence of looks."""
        state, means, values = None, [], []
        for map_ in maps:
            mean, value, state = self(map_, state)
            means.append(mean)
            values.append(value)
        return torch.stack(means, dim=1), torch.stack(values, dim=1)

    def macs(self) -> int:
        """Multiply-accumulates of one proposal; the critic is for training only."""
        weight = self.actor.weight
        return count_macs(self.see, weight.new_zeros(1, *self._map_shape)) + gru_macs(self.remember) + weight.numel()


def gru_macs(cell: nn.GRUCell) -> int:
    """Multiply-accumulates of one step of a GRU."""
    return cell.weight_ih.numel() + cell.weight_hh.numel()
