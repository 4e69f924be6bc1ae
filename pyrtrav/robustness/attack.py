"""Pictures changed as little as may be said, and as much against the right answer as a gradient knows how.

Sources: FGSM, "Explaining and harnessing adversarial examples", Goodfellow, Shlens and Szegedy, ICLR 2015: one step of
eps. PGD, "Towards deep learning models resistant to adversarial attacks", Madry et al., ICLR 2018: several steps, each
followed by a projection, from the picture itself.

| name | where | valid colours | loss | gradient |
|---|---|---|---|---|
| `fgsm`, `pgd` | pixels: eps is so many of 255 levels | kept | log-odds | the model's own |
| `pgd-paper` | normalised values: eps / 255 of them | not kept | cross entropy | scaled as in training (mgnet) |

The log-odds against the label have the direction of cross entropy's gradient, which is theirs times the probability of
the other classes. Where a model is very sure that product is zero in 32 bits, and what looks robust is only rounded.

`pgd-paper` is how the authors of "Multi-Glimpse Network" attacked; what comes out is mostly no picture that a file
could hold.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from pyrtrav.errors import ConfigError, nearest_name

ATTACKS = ("fgsm", "pgd", "pgd-paper")

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (picture, class) and labels (picture,) to what an attack raises, (picture,)."""

Believe = Callable[[list[Tensor]], Tensor]
"""From pictures (channels, height, width) in 0..255 to logits (picture, class), with a gradient."""


@dataclass(frozen=True)
class Attack:
    """How pictures are attacked."""

    name: str = "pgd"
    """``fgsm``, ``pgd`` or ``pgd-paper``."""
    eps: tuple[float, ...] = (4.0,)
    """Greatest change of a value, in 255ths; an attack for each."""
    step: float = 1.0
    """Change in a step, in 255ths; `fgsm` takes one of eps."""
    steps: tuple[int, ...] = (4,)
    """After how many steps the model is asked; `fgsm` takes one."""

    def __post_init__(self) -> None:
        if self.name not in ATTACKS:
            raise ConfigError(f"unknown attack {self.name!r}{nearest_name(self.name, ATTACKS)}")
        if not self.eps or not all(0 <= eps <= 255 for eps in self.eps):
            raise ConfigError(f"eps is a number of 255ths from 0 to 255, got {self.eps}")
        if not (self.step > 0 and math.isfinite(self.step)):
            raise ConfigError(f"a step must be above 0, got {self.step}")
        if not self.steps or min(self.steps) < 1:
            raise ConfigError(f"an attack takes 1 step or more, got {self.steps}")
        if self.name == "fgsm" and self.steps != (1,):
            raise ConfigError("fgsm takes one step, of eps; for more take pgd")

    @property
    def normalised(self) -> bool:
        """Whether values are normalised ones, and need not be colours."""
        return self.name == "pgd-paper"


def attacked(
    believe: Believe,
    pictures: Sequence[Tensor],
    labels: Tensor,
    attack: Attack,
    eps: float,
    std: Tensor | None = None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the pictures after each number of steps that the attack asks for.

    Args:
        pictures: (channels, height, width) in 0..255, of any sizes.
        labels: (picture,) what is to be denied.
        eps: greatest change of a value, in 255ths.
        std: (channels, 1, 1) by which the model divides values; for an attack on normalised ones.
    """
    unit = torch.ones(()) if std is None or not attack.normalised else std
    least = [picture - eps * unit.to(picture) for picture in pictures]
    most = [picture + eps * unit.to(picture) for picture in pictures]
    if not attack.normalised:
        least, most = ([bound.clamp(0, 255) for bound in bounds] for bounds in (least, most))
    step = eps if attack.name == "fgsm" else attack.step
    loss = surprise if attack.normalised else odds_against
    now = [picture.detach() for picture in pictures]
    for count in range(1, max(attack.steps) + 1):
        now = [
            torch.clamp(picture + step * unit.to(picture) * slope.sign(), low, high)
            for picture, slope, low, high in zip(now, gradients(believe, now, labels, loss), least, most, strict=True)
        ]
        if count in attack.steps:
            yield count, now


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each picture's cross entropy."""
    return cross_entropy(logits, labels, reduction="none")


def odds_against(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, for each picture, the logarithm of the other classes' probability over the label's."""
    own = one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]


def gradients(believe: Believe, pictures: Sequence[Tensor], labels: Tensor, loss: Loss) -> tuple[Tensor, ...]:
    """Return, for each picture, the gradient of its loss with respect to its values."""
    with torch.enable_grad():
        leaves = [picture.detach().requires_grad_() for picture in pictures]
        return torch.autograd.grad(loss(believe(leaves), labels).sum(), leaves)


def as_bytes(attacked: Tensor, picture: Tensor, eps: float) -> Tensor:
    """Return an attacked picture in whole numbers that differ from the picture's, whole too, by eps at most."""
    least, most = (picture - math.floor(eps)).clamp(min=0), (picture + math.floor(eps)).clamp(max=255)
    return torch.clamp(attacked.round(), least, most).to(torch.uint8)
