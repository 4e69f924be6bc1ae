"""Learning where to look, as pure functions of tensors.

Source: "Image classification through top-down image pyramid traversal", equations (1) to (4), (12), (14), (15).
All terms are written as quantities to be maximised, as in the paper. Means are over the batch's images in all processes
that train together.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyrtrav.ranks import whole_mean

BASELINE_DECAY = 0.9


def batch_mean(values: Float[Tensor, " any"]) -> Float[Tensor, ""]:
    """Return the mean of one value for each of something in the batch, such as images; 0 where there is none."""
    return whole_mean(values.sum(), len(values))


def reinforce(
    log_prob: Float[Tensor, " image"], reward: Float[Tensor, " image"], baseline: float | Float[Tensor, " image"]
) -> Float[Tensor, ""]:
    """Return the surrogate whose gradient is the second term of (1): mean of (reward - b) * grad log p(l | x).

    The baseline must not depend on the image's own draws; then it changes the variance only.
    """
    return batch_mean((reward.detach() - baseline) * log_prob)


def next_baseline(baseline: float | None, reward: Float[Tensor, " image"]) -> float:
    """Return the moving average (12) after a batch; the first batch's mean starts it."""
    mean = float(batch_mean(reward.detach()))
    return mean if baseline is None else BASELINE_DECAY * baseline + (1 - BASELINE_DECAY) * mean


def others_mean(
    reward: Float[Tensor, " image"], group: Int[Tensor, " image"], fallback: float
) -> Float[Tensor, " image"]:
    """Return for each draw the mean reward of the other draws for the same image (``group``): leave-one-out.

    It knows how hard the image is, which a moving average does not. A draw without others gets the fallback.
    """
    reward = reward.detach()
    size = int(group.max()) + 1 if len(group) else 0
    total = torch.zeros(size, dtype=reward.dtype, device=reward.device).index_add(0, group, reward)
    others = torch.bincount(group, minlength=size)[group] - 1
    mean = (total[group] - reward) / others.clamp(min=1)
    return torch.where(others > 0, mean, torch.full_like(mean, fallback))


def cost_penalty(expected_cells: Float[Tensor, " image"], c_t: float) -> Float[Tensor, ""]:
    """Return R_t / lambda_t of (2): minus half the squared distance of the batch's mean expected cells to c_t."""
    return -0.5 * (batch_mean(expected_cells) - c_t) ** 2


def diversity_penalty(mean_by_cell: Float[Tensor, " cell"], c_r: float) -> Float[Tensor, ""]:
    """Return R_r / lambda_r of (3): minus the mean over cells of half the squared distance to c_r."""
    return -0.5 * ((mean_by_cell - c_r) ** 2).mean()


def mean_entropy(logit: Float[Tensor, " edge"]) -> Float[Tensor, ""]:
    """Return the mean entropy of Bernoulli decisions, in nats (0 to log 2)."""
    # -p log p - (1 - p) log(1 - p), by log(1 - p) = log p - logit.
    return batch_mean(torch.sigmoid(-logit) * logit - torch.nn.functional.logsigmoid(logit))


def probability_for(c_t: float, cells: int, depth: int) -> float:
    """Return the probability p a cell that solves sum over z = 1..depth of (cells * p)^z = c_t, at most 1.

    The paper gives no c_r and says that it depends on c_t: this is the p at which a policy that favours no place
    attends c_t cells.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum((cells * middle) ** z for z in range(1, depth + 1)) < c_t:
            low = middle
        else:
            high = middle
    return high


def log_likelihood(logits: Float[Tensor, "image label"], target: torch.Tensor) -> Float[Tensor, " image"]:
    """Return log p(y | l, x) of the true labels."""
    return torch.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
