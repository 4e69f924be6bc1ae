"""Proximal policy optimization with Gaussian actions, as pure functions of tensors.

Source: "Glance and Focus", appendix A.2, after Schulman et al., "Proximal policy optimization algorithms". All but the
log-density are on the axes image and step, the step being the one after which an action was taken.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyrtrav.ranks import whole_mean

LEAST_DEVIATION = 1e-5
"""Added to the returns' standard deviation, so that returns that are all alike become zeros."""


def gaussian_log_prob(
    action: Float[Tensor, "*any 2"], mean: Float[Tensor, "*any 2"], deviation: float
) -> Float[Tensor, " *any"]:
    """Return log pi(l | s): the log-density of points under independent Gaussians of one standard deviation."""
    squares = ((action - mean) / deviation).square().sum(-1)
    return -squares / 2 - math.log(2 * math.pi * deviation**2)


def discounted_returns(reward: Float[Tensor, "image step"], discount: float) -> Float[Tensor, "image step"]:
    """Return for every step its reward and the discounted later ones: V^target of A.2."""
    found: list[Tensor] = []
    later = torch.zeros_like(reward[:, 0])
    for step in range(reward.shape[1] - 1, -1, -1):
        later = reward[:, step] + discount * later
        found.append(later)
    return torch.stack(found[::-1], dim=1)


def normalised(values: Float[Tensor, "image step"]) -> Float[Tensor, "image step"]:
    """Return the values less their mean, over their standard deviation: over all images and steps of all processes."""
    mean = whole_mean(values.sum(), values.numel())
    variance = whole_mean((values - mean).square().sum(), values.numel())
    return (values - mean) / (variance.sqrt() + LEAST_DEVIATION)


def clipped_surrogate(
    log_prob: Float[Tensor, "image step"],
    old_log_prob: Float[Tensor, "image step"],
    advantage: Float[Tensor, "image step"],
    clip: float,
) -> Float[Tensor, "image step"]:
    """Return L^CLIP (7), to be maximised; ``old_log_prob`` and ``advantage`` are constants.

    The first time that actions are judged, the old policy being the new one, the ratio is 1 and the gradient that of
    the advantage times log pi.
    """
    ratio = torch.exp(log_prob - old_log_prob.detach())
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(ratio * advantage.detach(), bounded * advantage.detach())


def ppo_objective(
    log_prob: Float[Tensor, "image step"],
    old_log_prob: Float[Tensor, "image step"],
    value: Float[Tensor, "image step"],
    returns: Float[Tensor, "image step"],
    *,
    clip: float,
    value_weight: float,
) -> Float[Tensor, "image step"]:
    """Return (8) without its entropy, to be maximised: L^CLIP less ``value_weight`` times the squared error of V.

    The advantage (6) is what the return is above the value; it is a constant to the policy. The entropy of a Gaussian
    of fixed deviation is a constant too: its bonus has no gradient.
    """
    surrogate = clipped_surrogate(log_prob, old_log_prob, returns - value, clip)
    return surrogate - value_weight * (value - returns.detach()).square()
