"""Location modules: from a fixation's map to a logit for each of its cells."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.encoders.base import init_xavier
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.traversal import Policy


class Location(Policy):
    """The location module: one logit a cell, from the whole map; no gradient goes back into the map."""

    def __init__(self, channels: int, map_size: tuple[int, int], grid: Grid, initial_probability: float) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(channels, grid.count, map_size)
        init_xavier(self)
        nn.init.constant_(self.conv.bias, _logit(initial_probability))  # type: ignore[arg-type]

    def logits(self, map_: Float[Tensor, "fixation channel row column"]) -> Float[Tensor, "fixation cell"]:
        logits: Tensor = self.conv(map_)
        return logits.flatten(1)


class LocalLocation(Policy):
    """One logit a cell, from its own part of the map by the same weights, and a bias for its place in the grid.

    Few weights, each of which learns from all cells: where images are few, `Location` learns them by heart.

    Raises:
        ConfigError: cells do not end where positions of the map do.
    """

    def __init__(self, channels: int, map_size: tuple[int, int], grid: Grid, initial_probability: float) -> None:
        super().__init__()
        self.grid = grid
        exact = np.multiply.outer([grid.side, grid.stride], map_size)
        kernel, step = np.rint(exact).astype(np.int64).tolist()
        if not np.allclose(exact, [kernel, step]) or min(kernel + step) == 0:
            raise ConfigError(
                f"location=local needs cells that end where positions of the encoder's map of {map_size[1]} x "
                f"{map_size[0]} do; take a larger map, or location=whole"
            )
        self.conv = nn.Conv2d(channels, 1, kernel, step, bias=False)
        self.bias = nn.Parameter(torch.full((grid.count,), _logit(initial_probability)))
        init_xavier(self)

    def logits(self, map_: Float[Tensor, "fixation channel row column"]) -> Float[Tensor, "fixation cell"]:
        logits: Tensor = self.conv(map_)
        return logits.flatten(1) + self.bias


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
