"""Normalisation of features: over the channels of each position, over a patch, or over a batch as the papers have it.

Batch statistics make a vector depend on what else was encoded with it, and one traversal encodes the patches of each
depth apart: training then sees the statistics of one depth, a test their mixture. Those of a patch depend on nothing
else, but a feature then sees all of its patch. Over the channels of a position nothing but its own features takes part,
so that strips of an image equal the image; but an empty position comes out as strong as one that shows something. What
each is worth in a traversal stands in docs/encoders.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.errors import ConfigError, nearest_name

EPSILON = 1e-5


class _Norm(nn.Module):
    """A weight and a bias for each channel, of features at any of so many scales."""

    def __init__(self, channels: int, scales: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))


class ChannelNorm(_Norm):
    """Mean 0 and variance 1 over the channels of each position, then a weight and a bias for each channel."""

    def forward(self, features: Tensor, scale: int = 0) -> Tensor:
        features = features.to(self.weight.dtype)  # sums in bfloat16 would be coarse
        centred = features - features.mean(1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + EPSILON)
        return scaled * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class PatchNorm(_Norm):
    """Mean 0 and variance 1 over all features of a patch, then a weight and a bias for each channel.

    "Group normalization" (Wu and He, 2018) with one group.
    """

    def forward(self, features: Tensor, scale: int = 0) -> Tensor:
        return functional.group_norm(features.to(self.weight.dtype), 1, self.weight, self.bias, EPSILON)


class BatchNorm(_Norm):
    """Batch normalisation whose weights may serve several scales, each with running statistics of its own.

    In training a batch's own statistics, at test time the running ones. Where a batch has one value a channel, which
    has no variance, the running ones serve in training too. They follow only batches that a gradient is wanted of, so
    that counting costs changes nothing; a batch that is recomputed for its gradient counts twice.

    Attributes:
        mean, var: running statistics, shape (scales, channels).
    """

    MOMENTUM = 0.1
    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, scales: int = 1) -> None:
        super().__init__(channels, scales)
        self.register_buffer("mean", torch.zeros(scales, channels))
        self.register_buffer("var", torch.ones(scales, channels))

    def forward(self, features: Tensor, scale: int = 0) -> Tensor:
        if not self.training or features.numel() <= features.shape[1]:
            # Copies, since a later batch may change the statistics before the gradient is asked for.
            at = self.mean[scale].clone(), self.var[scale].clone()
            return functional.batch_norm(features, at[0], at[1], self.weight, self.bias, eps=EPSILON)
        mean, var = (self.mean[scale], self.var[scale]) if torch.is_grad_enabled() else (None, None)
        return functional.batch_norm(features, mean, var, self.weight, self.bias, True, self.MOMENTUM, EPSILON)


NORMS: dict[str, Callable[[int, int], nn.Module]] = {"channel": ChannelNorm, "patch": PatchNorm, "batch": BatchNorm}
"""By name: from channels and scales to a module of features (image, channel, row, column) and a scale's number."""


LOCAL = "channel"
"""That with which parts of an image are normalised as the whole is, in training too: what `fcn` needs."""


def make_norm(name: str, channels: int, scales: int = 1) -> nn.Module:
    """Return a normalisation by its name.

    Raises:
        ConfigError: no normalisation has this name.
    """
    if name not in NORMS:
        raise ConfigError(f"unknown normalisation {name!r}{nearest_name(name, list(NORMS))}")
    return NORMS[name](channels, scales)
