"""What is convolved at every resolution, and the layer that mixes the resolutions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders.normalisation import make_norm
from pyrtrav.encoders.resize import enlarged, halved

EXPANSION, SQUEEZE = 6, 4
"""Of MBConv6: channels in the middle for each at the ends; channels at the ends for each of the squeezed vector."""


class ConvBlock(nn.Module):
    """3 x 3 convolution, ReLU, normalisation."""

    def __init__(self, inputs: int, filters: int, scales: int, norm: str, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, stride, padding=1)
        self.norm = make_norm(norm, filters, scales)

    def forward(self, features: Tensor, scale: int = 0) -> Tensor:
        found: Tensor = self.norm(functional.relu(self.conv(features)), scale)
        return found


class MBConvBlock(nn.Module):
    """EfficientNet's MBConv6 with its shortcut: expand, convolve each channel, squeeze and excite, project."""

    def __init__(self, inputs: int, filters: int, scales: int, norm: str) -> None:
        super().__init__()
        wide, squeezed = EXPANSION * inputs, max(1, inputs // SQUEEZE)
        self.expand = nn.Conv2d(inputs, wide, 1, bias=False)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.squeeze, self.excite = nn.Conv2d(wide, squeezed, 1), nn.Conv2d(squeezed, wide, 1)
        self.project = nn.Conv2d(wide, filters, 1, bias=False)
        self.norms = nn.ModuleList(make_norm(norm, channels, scales) for channels in (wide, wide, filters))

    def forward(self, features: Tensor, scale: int = 0) -> Tensor:
        expanded, convolved, projected = self.norms
        wide = functional.silu(expanded(self.expand(features), scale))
        wide = functional.silu(convolved(self.depthwise(wide), scale))
        excited = self.excite(functional.silu(self.squeeze(wide.mean((2, 3), keepdim=True))))
        found: Tensor = projected(self.project(wide * torch.sigmoid(excited)), scale)
        return features + found


BLOCKS: dict[str, Callable[[int, int, int, str], nn.Module]] = {"conv": ConvBlock, "mbconv": MBConvBlock}
"""By name: from input channels, filters, resolutions and a name of `NORMS`."""


class Mixing(nn.Module):
    """Weights of alternatives: a learned softmax, or equal ones.

    Args:
        count: alternatives.
        learned: whether there are logits to learn, which begin equal; else all that is kept weighs the same.

    Attributes:
        kept: the alternatives that are used. The softmax weights of others are lost, not shared out: what is kept
            weighs as much as it did among all, so that to leave out is to set to zero.
    """

    def __init__(self, count: int, learned: bool) -> None:
        super().__init__()
        self.count, self.kept = count, tuple(range(count))
        self.logits = nn.Parameter(torch.zeros(count)) if learned else None

    def forward(self) -> list[Tensor | float]:
        """Return the weights of those that are kept."""
        if self.logits is None:
            return [1 / len(self.kept) for _ in self.kept]
        weights = self.logits.softmax(0)
        return [weights[alternative] for alternative in self.kept]

    def table(self) -> Tensor:
        """Return the weight of every alternative, shape (count,), without a gradient: 0 where it is not kept."""
        weights = torch.zeros(self.count, dtype=torch.float64)
        with torch.no_grad():
            weights[list(self.kept)] = torch.tensor([float(weight) for weight in self()], dtype=torch.float64)
        return weights


class MultiresLayer(nn.Module):
    """One block with the same filters at several resolutions; the results are mixed at full size.

    Args:
        block: of features and the number of halvings.
        mixing: of the resolutions; those that are kept in rising order of halvings.
    """

    def __init__(self, block: nn.Module, mixing: Mixing) -> None:
        super().__init__()
        self.block, self.mixing = block, mixing

    def forward(self, features: Tensor) -> Tensor:
        grids = [features]
        while len(grids) <= self.mixing.kept[-1]:
            grids.append(halved(grids[-1]))
        kept = self.mixing.kept
        found = [self.block(grids[each], each) * weight for each, weight in zip(kept, self.mixing(), strict=True)]
        # Enlarged from each resolution to the next finer one, so that little is added at full size.
        mixed = found[-1]
        for finer, coarser, own in reversed(list(zip(kept[:-1], kept[1:], found[:-1], strict=True))):
            mixed = own + enlarged(mixed, 2 ** (coarser - finer), own)
        return enlarged(mixed, 2 ** kept[0], features)

    @property
    def margin(self) -> int:
        """Positions that an output sees at most beside its own: the coarsest cell, and the next one."""
        return int(2 ** (self.mixing.kept[-1] + 1) - 1)
