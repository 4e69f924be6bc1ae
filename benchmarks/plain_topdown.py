"""Learning rule (4) written down plainly: correct, in batches, and without any of our machinery.

The yardstick for training speed (``python -m benchmarks.training_speed``), and an independent truth for the gradients
of `pyrtrav.methods.topdown.LearningRule` (``tests/test_plain_topdown.py``). Every draw looks for itself, activations
come where the paper's tables have them, and where things are is kept in lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    conv2d,
    leaky_relu,
    log_softmax,
    max_pool2d,
)

from pyrtrav.encoders.paper import LEAKY_SLOPE, PAPER_ENCODERS, PaperEncoder
from pyrtrav.methods.topdown import TopDown

Place = tuple[int, int, int]
"""Draw, and left and top in pixels of the level."""


class Look(NamedTuple):
    """Everything at one depth."""

    places: list[Place]
    vectors: Tensor
    logits: Tensor
    """(place, 9); of other shape where no cell follows."""
    masks: Tensor


class Result(NamedTuple):
    loss: Tensor
    cells: float


def plain_step(
    model: TopDown,
    name: str,
    images: Tensor,
    labels: Tensor,
    baseline: float,
    draw: Callable[[int, list[Place], Tensor], Tensor],
) -> Result:
    """Return the loss of (4) with the model's weights, for images (n, 1, side, side) in 0..1.

    Args:
        name: of its encoder.
        draw: (depth, places, probabilities) -> masks (place, 9) of 0 and 1.
    """
    config, base = model.config, model.encoder.base_resolution
    images = images.repeat_interleave(config.samples, 0)
    labels = labels.repeat_interleave(config.samples, 0)
    places: list[Place] = [(i, 0, 0) for i in range(len(images))]
    looks: list[Look] = []
    for depth in range(config.max_depth + 1):
        level = avg_pool2d(images, images.shape[-1] // (base * 2**depth))
        crops = [level[i, :, y : y + base, x : x + base] for i, x, y in places]
        features = _features(model, name, torch.stack(crops)) if crops else images.new_zeros(0)
        if depth == config.max_depth or not crops:
            looks.append(Look(places, features.mean((2, 3)) if crops else features, features, features))
            break
        cells = model.location.conv(features.detach()).flatten(1)  # type: ignore[operator]
        masks = draw(depth, places, torch.sigmoid(cells.detach()))
        looks.append(Look(places, features.mean((2, 3)), cells, masks))
        # A cell begins at a quarter, half of its parent's side; the next level has twice the pixels.
        half = base // 2
        places = [
            (i, 2 * x + half * (cell % 3), 2 * y + half * (cell // 3))
            for (i, x, y), mask in zip(places, masks.tolist(), strict=True)
            for cell in range(9)
            if mask[cell]
        ]
    logits = model.classify(_merged(model, looks))
    reward = log_softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    return Result(-(reward.mean() + _attention(model, looks, reward, baseline)), _mean_cells(looks, len(images)))


def _features(model: TopDown, name: str, patches: Tensor) -> Tensor:
    assert isinstance(model.encoder, PaperEncoder)
    weights = list(model.encoder.layers.parameters())
    for row in PAPER_ENCODERS[name].rows:
        if row.filters:
            patches = leaky_relu(conv2d(patches, weights.pop(0), weights.pop(0), padding=1), LEAKY_SLOPE)
        else:
            patches = max_pool2d(patches, row.kernel, row.stride)
    return patches


def _merged(model: TopDown, looks: list[Look]) -> Tensor:
    """Equation (7) from the deepest level up: V' of the glances."""
    below = looks[-1].vectors
    for look in reversed(looks[:-1]):
        vectors = look.vectors
        on = look.masks.nonzero()
        if len(on):
            grids = vectors.new_zeros(len(vectors), vectors.shape[1], 3, 3)
            grids[on[:, 0], :, on[:, 1] // 3, on[:, 1] % 3] = below
            fine = leaky_relu(model.aggregate(grids), LEAKY_SLOPE).flatten(1)
            merged = leaky_relu(model.merge(torch.cat([vectors, fine], 1)), LEAKY_SLOPE)
            vectors = torch.where(look.masks.any(1, keepdim=True), merged, vectors)
        below = vectors
    return below


def _attention(model: TopDown, looks: list[Look], reward: Tensor, baseline: float) -> Tensor:
    """REINFORCE, (2) with (14), and (3) with (15)."""
    config, depth = model.config, model.config.max_depth
    log_prob, expected = torch.zeros_like(reward), torch.zeros_like(reward)
    probabilities = []
    for look in looks:
        if look.logits.dim() != 2:
            continue
        draws = torch.tensor([i for i, _, _ in look.places], device=reward.device)
        unlikely = binary_cross_entropy_with_logits(look.logits, look.masks, reduction="none")
        log_prob = log_prob.index_add(0, draws, -unlikely.sum(1))
        probabilities.append(torch.sigmoid(look.logits))
        expected = expected.index_add(0, draws, probabilities[-1].sum(1))
    by_cell = torch.cat(probabilities).mean(0)
    return (
        config.lambda_f * ((reward.detach() - baseline) * log_prob).mean()
        - config.lambda_t * 0.5 * (expected.mean() - config.cells_wanted(depth)) ** 2
        - config.lambda_r * 0.5 * ((by_cell - config.even_probability(depth)) ** 2).mean()
    )


def _mean_cells(looks: list[Look], draws: int) -> float:
    return sum(len(look.places) for look in looks[1:]) / draws
