"""How models of the multi-glimpse toy experiments bear what they were not trained for."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.mgnet_train import Dataset, believe, draw_images
from benchmarks.mnist_images import Digits
from pyrtrav.methods.mgnet import Mgnet
from pyrtrav.robustness.attack import Attack, attacked
from pyrtrav.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt

BATCH = 100


def draw_test(digits: Digits, dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """Return images in whole numbers of 0..255 and their labels: the same for every model."""
    index = torch.arange(count, device=digits.labels.device)
    generator = torch.Generator(digits.labels.device).manual_seed(2_000_000)
    return draw_images(digits, index, dataset, generator).round(), digits.labels[:count]


@torch.inference_mode()
def right(model: Mgnet, images: Tensor, labels: Tensor) -> list[float]:
    """Return the accuracy after each glimpse."""
    counts = [
        (believe(model, own).argmax(2) == truth).sum(1)
        for own, truth in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
    ]
    return (torch.stack(counts).sum(0) / len(labels)).tolist()


def under_corruptions(model: Mgnet, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return, for each of the 15 corruptions, the accuracy after each glimpse: the mean of its 5 severities."""
    pixels = images.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        rows = []
        for severity in SEVERITIES:
            changed = [corrupt(each, name, severity, seed=number) for number, each in enumerate(pixels)]
            stack = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(images)
            rows.append(right(model, stack, labels))
        found[name] = [round(mean(values), 4) for values in zip(*rows, strict=True)]
    return found


STEP = 0.25
"""Of an attack, as a share of its eps: the paper's 1/255 of 4/255. Shorter steps would never get as far as eps."""


def under_attack(
    model: Mgnet, images: Tensor, labels: Tensor, eps_asked: Sequence[float], steps: Sequence[int]
) -> dict[str, dict[int, list[float]]]:
    """Return, for each eps (in 255ths) and number of steps, the accuracy after each glimpse under PGD.

    The attack is on what is believed after the last one; the gradient is the model's own, not that of training.
    """
    found: dict[str, dict[int, list[float]]] = {}

    def last(pictures: list[Tensor]) -> Tensor:
        return believe(model, torch.stack(pictures))[-1]

    for eps in eps_asked:
        attack = Attack("pgd", eps=(eps,), step=STEP * eps, steps=tuple(steps))
        counts: dict[int, Any] = {}
        for own, truth in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
            with model.true_gradients():
                for done, pictures in attacked(last, list(own), truth, attack, eps):
                    share = len(truth) / len(labels)
                    now = np.array(right(model, torch.stack(pictures).round(), truth)) * share
                    counts[done] = counts.get(done, 0) + now
        found[f"{eps:g}"] = {done: np.round(value, 4).tolist() for done, value in counts.items()}
    return found
