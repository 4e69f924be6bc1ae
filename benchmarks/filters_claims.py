"""What the paper on learned filter sizes claims, and what the results say of it: reproduced, not, or undecided."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.differences import NOT, REPRODUCED, UNDECIDED, Difference, paired
from benchmarks.filters_jobs import DEPTH, ONE

Row = dict[str, Any]

LEVEL = 0.005
"""Accuracies that differ by less are called the same."""


class MissingError(Exception):
    """A network that a claim needs is not trained yet."""


class Results:
    """The rows of one kind of network, by arm and pruning."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    @property
    def control(self) -> str | None:
        """What pruned networks are compared with: the one that was fine-tuned alone, if it was trained."""
        return "0" if any((row["arm"], row["pruned"]) == ("learned", "0") for row in self.rows) else None

    def find(self, arm: str, pruned: str | None = None) -> list[Row]:
        """Return the rows of one arm, one of each seed.

        Raises:
            MissingError: there is none.
        """
        found = [row for row in self.rows if (row["arm"], row["pruned"]) == (arm, pruned)]
        if not found:
            raise MissingError
        return sorted(found, key=lambda row: row["seed"])

    def difference(self, one: tuple[str, str | None], other: tuple[str, str | None]) -> Difference:
        """Return how much more accurate ``one`` is.

        The error is of the test images, pair by pair; with several seeds that between seeds where it is larger.
        """
        firsts = {row["seed"]: row for row in self.find(*one)}
        pairs = [(firsts[row["seed"]], row) for row in self.find(*other) if row["seed"] in firsts]
        if not pairs:
            raise MissingError
        return paired(np.stack([right(a).astype(float) - right(b) for a, b in pairs]))


def right(row: Row) -> NDArray[np.bool_]:
    """Return of each test image whether the network was right."""
    packed = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return np.unpackbits(packed, count=row["test_images"]).astype(bool)


def coarseness(row: Row) -> list[float]:
    """Return each layer's mean halvings, weighed as it mixes them."""
    table = np.array(row["mixing"])
    means: list[float] = (table @ np.arange(table.shape[1]) / table.sum(1)).tolist()
    return means


Verdict = tuple[str, str]


def _above(found: Results, one: str, other: str, pruned: str | None = None) -> Callable[[], Verdict]:
    def decide() -> Verdict:
        difference = found.difference((one, pruned), (other, None))
        return difference.above(), str(difference)

    return decide


def _costs_little(found: Results, pruned: str, most: float) -> Callable[[], Verdict]:
    def decide() -> Verdict:
        # What fine-tuning alone brings is not what pruning costs.
        change = found.difference(("learned", pruned), ("learned", found.control))
        (whole, *_), (less, *_) = found.find("learned"), found.find("learned", pruned)
        spared = 1 - less["macs"] / whole["macs"]
        text = f"{change}, {100 * spared:.0f}% of the multiply-accumulates spared"
        if spared <= 0:
            return UNDECIDED, text + ": it left out nothing"
        return change.above(-most), text

    return decide


def _diagonal(found: Results) -> Verdict:
    means = [coarseness(row) for row in found.find("learned")]
    ranks = [float(spearmanr(range(len(each)), each).statistic) for each in means]
    rows = found.find("learned")
    moved = max(abs(weight - 1 / len(line)) for row in rows for line in row["mixing"] for weight in line)
    text = "rank correlation " + ", ".join(f"{rank:.2f}" for rank in ranks)
    text += f"; the first layer halves {means[0][0]:.2f} times on average, the last one {means[0][-1]:.2f} times"
    if moved < 0.05:
        return UNDECIDED, text + "; the weights have hardly moved"
    return (REPRODUCED if min(ranks) > 0.5 else NOT if max(ranks) < 0 else UNDECIDED), text


def _spread(found: Results) -> Verdict:
    heaviest = [max(line) for row in found.find("learned") for line in row["mixing"]]
    text = f"the heaviest resolution of a layer weighs {mean(heaviest):.2f} on average, {max(heaviest):.2f} at most"
    return (REPRODUCED if mean(heaviest) < 0.9 else NOT), text


def _depth(found: Results) -> Verdict:
    difference = found.difference((DEPTH, None), ("learned", None))
    heavy = [int(np.argmax(row["depth"])) + 1 for row in found.find(DEPTH)]
    verdict = {REPRODUCED: NOT, NOT: REPRODUCED}.get(difference.above(), UNDECIDED)
    return verdict, f"{difference}; the heaviest output is that of layer {', '.join(map(str, heavy))}"


def decide_all(found: Results) -> list[tuple[str, str, str]]:
    """Return each claim, the verdict, and the figures that decide it; no figures where a network is missing."""
    claims: list[tuple[str, Callable[[], Verdict]]] = [
        ("learned is more accurate than predefined pooling (by 0.6 with 16 filters)", _above(found, *_PAIRS[0])),
        ("learned is more accurate than scale invariant (5.7)", _above(found, *_PAIRS[1])),
        ("learned is more accurate than no pooling (12.1)", _above(found, *_PAIRS[2])),
        ("predefined pooling is more accurate than scale invariant (5.1)", _above(found, *_PAIRS[3])),
        ("scale invariant is more accurate than no pooling (6.4)", _above(found, *_PAIRS[4])),
        ("pruned at 0.1 it is as accurate, for 29% less (with 64 filters)", _costs_little(found, "0.1", LEVEL)),
        ("pruned at 0.2 it loses 0.2 points, for 34% less", _costs_little(found, "0.2", LEVEL)),
        ("pruned to one resolution it loses 1.4 points, for 37% less", _costs_little(found, ONE, 0.014 + LEVEL)),
        ("pruned to one resolution it is above predefined pooling (1.1)", _above(found, *_PAIRS[0], pruned=ONE)),
        ("layers learn to work ever more coarsely (figure 3: a diagonal)", lambda: _diagonal(found)),
        ("a layer's weight is spread over several resolutions", lambda: _spread(found)),
        ("learning the depth too costs accuracy (0.5, table 3)", lambda: _depth(found)),
    ]
    decided = []
    for claim, decide in claims:
        try:
            decided.append((claim, *decide()))
        except MissingError:
            decided.append((claim, "not trained yet", ""))
    return decided


_PAIRS = (
    ("learned", "predefined"),
    ("learned", "scale-invariant"),
    ("learned", "no-pooling"),
    ("predefined", "scale-invariant"),
    ("scale-invariant", "no-pooling"),
)
