"""Score as colour: one table that colour-blind readers can order, and a scale that starts at zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

Colour = tuple[int, int, int]

# Nine even steps of matplotlib's viridis (CC0) from 0.15 to 1: its darkest part looks like haematoxylin.
_ANCHORS: tuple[Colour, ...] = (
    (70, 52, 128),
    (58, 83, 139),
    (46, 111, 142),
    (35, 137, 142),
    (31, 162, 135),
    (59, 187, 117),
    (115, 208, 86),
    (184, 222, 41),
    (253, 231, 37),
)

# Round ends of a scale, each with the number of round steps that it has.
_LIMITS = ((1.0, 5), (1.5, 3), (2.0, 4), (3.0, 3), (4.0, 4), (5.0, 5), (6.0, 3), (8.0, 4), (10.0, 5))


def colour_at(position: float) -> Colour:
    """Return the colour at 0..1 of the scale; beyond it, that of its end."""
    place = min(max(position, 0.0), 1.0) * (len(_ANCHORS) - 1)
    first = min(int(place), len(_ANCHORS) - 2)
    part = place - first
    low, high = _ANCHORS[first], _ANCHORS[first + 1]
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def is_light(colour: Colour) -> bool:
    """Whether a line of this colour needs a dark edge to be seen on white."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Scores 0 .. ``limit``, a round number, as colours."""

    limit: float
    step: float
    """Distance of the colour bar's ticks."""

    @classmethod
    def over(cls, largest: float) -> ScoreScale:
        """Return the shortest scale with round ticks that holds ``largest``; attention weights are small."""
        if not largest > 0 or not math.isfinite(largest):
            return cls(1.0, 0.2)
        power = 10.0 ** math.floor(math.log10(largest))
        factor, ticks = next((factor, ticks) for factor, ticks in _LIMITS if largest <= factor * power * (1 + 1e-9))
        return cls(factor * power, factor * power / ticks)

    def position(self, score: float) -> float:
        """Return where 0..1 of the scale a score lies."""
        return min(max(score / self.limit, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Return (position 0..1, text) of every tick."""
        count = round(self.limit / self.step)
        return [(i / count, f"{i * self.step:.2g}") for i in range(count + 1)]
