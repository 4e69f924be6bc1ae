"""Figures as colours that colour-blind readers can order.

A score has one table and a scale that starts at zero; a contribution, for or against the predicted class, has two
arms that part at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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

# Against the class to for it: vermilion to blue, as far apart for the colour-blind as two arms can be. The middle is
# light and gray: what changes nothing steps back.
_ARMS: tuple[Colour, ...] = (
    *((166, 54, 3), (230, 108, 36), (247, 172, 108), (228, 206, 190)),
    *((214, 214, 214), (178, 200, 222), (107, 174, 214), (48, 129, 189), (8, 72, 140)),
)

# Round ends of a scale, each with the number of round steps that it has.
_LIMITS = ((1.0, 5), (1.5, 3), (2.0, 4), (3.0, 3), (4.0, 4), (5.0, 5), (6.0, 3), (8.0, 4), (10.0, 5))


def colour_at(position: float, anchors: Sequence[Colour] = _ANCHORS) -> Colour:
    """Return the colour at 0..1 of a table, by default the scores'; beyond it, that of its end."""
    place = min(max(position, 0.0), 1.0) * (len(anchors) - 1)
    first = min(int(place), len(anchors) - 2)
    part = place - first
    low, high = anchors[first], anchors[first + 1]
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def is_light(colour: Colour) -> bool:
    """Whether a line of this colour needs a dark edge to be seen on white."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128


def hexadecimal(colour: Colour) -> str:
    """Return ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


class Scale(Protocol):
    """Figures as places 0..1 on a colour bar, and those as colours."""

    @property
    def title(self) -> str:
        """What the bar measures."""

    def position(self, value: float) -> float:
        """Return where 0..1 of the bar a figure lies."""

    def colour(self, position: float) -> Colour:
        """Return the colour of a place on the bar."""

    def weight(self, position: float) -> float:
        """Return 0..1: how much a place on the bar matters."""

    def ticks(self) -> list[tuple[float, str]]:
        """Return (position 0..1, text) of every tick."""


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """Scores 0 .. ``limit``, a round number, as colours."""

    limit: float
    step: float
    """Distance of the colour bar's ticks."""

    @classmethod
    def over(cls, largest: float) -> ScoreScale:
        """Return the shortest scale with round ticks that holds ``largest``; attention weights are small."""
        return cls(*_round_limit(largest))

    @property
    def title(self) -> str:
        return "score"

    def position(self, value: float) -> float:
        return min(max(value / self.limit, 0.0), 1.0)

    def colour(self, position: float) -> Colour:
        return colour_at(position)

    def weight(self, position: float) -> float:
        return position

    def ticks(self) -> list[tuple[float, str]]:
        count = round(self.limit / self.step)
        return [(i / count, f"{i * self.step:.2g}") for i in range(count + 1)]


@dataclass(frozen=True, slots=True)
class ContributionScale:
    """Contributions -``limit`` .. ``limit`` as colours; what changes nothing lies in the middle."""

    limit: float
    step: float
    """Distance of the colour bar's ticks, on either side of zero."""

    @classmethod
    def over(cls, largest: float) -> ContributionScale:
        """Return the shortest scale with round ticks that holds contributions as large as this, of either sign."""
        return cls(*_round_limit(abs(largest)))

    @property
    def title(self) -> str:
        return "contribution"

    def position(self, value: float) -> float:
        return min(max(value / self.limit / 2 + 0.5, 0.0), 1.0)

    def colour(self, position: float) -> Colour:
        return colour_at(position, _ARMS)

    def weight(self, position: float) -> float:
        return abs(2 * position - 1)

    def ticks(self) -> list[tuple[float, str]]:
        count = round(self.limit / self.step)
        return [((i / count + 1) / 2, f"{i * self.step:+.2g}" if i else "0") for i in range(-count, count + 1)]


def _round_limit(largest: float) -> tuple[float, float]:
    """The end of the shortest scale that holds a figure and has round ticks, and their distance."""
    if not largest > 0 or not math.isfinite(largest):
        return 1.0, 0.2
    power = 10.0 ** math.floor(math.log10(largest))
    factor, ticks = next((factor, ticks) for factor, ticks in _LIMITS if largest <= factor * power * (1 + 1e-9))
    return factor * power, factor * power / ticks
