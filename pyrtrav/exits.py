"""Early exit: from which confidence images leave after each depth, fitted on held-out images to a mean cost.

An image leaves after the first depth at which its largest probability reaches that depth's threshold. As in budgeted
batch classification (Huang et al., MSDNet; Glance and Focus) the share of images that leave after depth k is
proportional to q^k: the thresholds that meet these shares follow from held-out confidences, and q from the mean cost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.selection import NEVER, Floats, Ints, Settings

UNITS = ("fixations", "macs", "bytes")
"""What a mean budget may be of."""

MOST_IMAGES = 2000
"""Held-out images that a table keeps: a model file is to stay small."""

DIGITS = 6
"""Of what a kept confidence lacks to 1, at least: models are sure, and images tie in fewer. It is rounded down, so that
the image itself leaves wherever its row says so."""

_SWEPT = 1001
"""Values of q that are tried, from "all leave after the glance" to "none leaves early"."""


class MeanBudget(NamedTuple):
    """What an image may cost on average."""

    amount: float
    unit: str


def parse_mean_budget(text: str) -> MeanBudget:
    """Read ``6`` (looks), ``40e6macs`` or ``200000 bytes``.

    Raises:
        ConfigError: something else.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    try:
        amount = float(found[1]) if found else math.nan
    except ValueError:
        amount = math.nan
    if found is None or not math.isfinite(amount) or amount <= 0:
        raise ConfigError(f"a mean budget is a number such as 6, 40e6macs or 200000bytes; got {text!r}")
    unit = "fixations" if found[2] in ("", "looks") else found[2]
    if unit not in UNITS:
        raise ConfigError(f"unknown unit {unit!r} of a mean budget{nearest_name(unit, UNITS)}")
    return MeanBudget(amount, unit)


@dataclass(frozen=True)
class ExitTable:
    """What held-out images believed and cost after each depth, in one way of looking."""

    look: Mapping[str, Any]
    """The way of looking: see ``look_of``."""
    confidence: Floats
    """(depth, image) the largest probability, 0..1."""
    costs: Mapping[str, Floats]
    """By unit (depth, image): of a run that stops there and was judged on its way; bytes only where they are known."""

    def to_plain(self) -> dict[str, Any]:
        """Return what a model file keeps: of evenly spaced images where they are many."""
        images = self.confidence.shape[1]
        kept = np.unique(np.linspace(0, images - 1, min(images, MOST_IMAGES)).round().astype(np.int64))
        return {
            "look": dict(self.look),
            "confidence": _rounded_down(self.confidence[:, kept]).tolist(),
            "costs": {name: values[:, kept].astype(np.int64).tolist() for name, values in self.costs.items()},
        }


def _rounded_down(confidence: Floats) -> Floats:
    """Return the greatest numbers with so many digits that are not above, as they are compared: in floating point."""
    lacking = np.clip(1 - confidence, 1e-9, 1.0)
    unit = 10.0 ** (DIGITS + np.floor(-np.log10(lacking)))
    whole = np.floor(confidence * unit)
    whole += (whole + 1) / unit <= confidence
    whole -= whole / unit > confidence
    found: Floats = whole / unit
    return found


def read_table(plain: Mapping[str, Any]) -> ExitTable:
    """Return the table of a model file.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        confidence = np.array(plain["confidence"], np.float64)
        costs = {str(name): np.array(values, np.float64) for name, values in dict(plain["costs"]).items()}
        look = dict(plain["look"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"its table of held-out exits is damaged ({error!r})") from error
    whole = confidence.ndim == 2 and confidence.size > 0 and bool(((confidence >= 0) & (confidence <= 1)).all())
    alike = all(values.shape == confidence.shape and bool((values >= 0).all()) for values in costs.values())
    if not whole or not alike or not {"fixations", "macs"} <= set(costs):
        raise ConfigError("its table of held-out exits is damaged (numbers out of range, or missing)")
    return ExitTable(look, confidence, costs)


def look_of(settings: Settings) -> dict[str, Any]:
    """Return what the beliefs and costs after each depth depend on, but for the seed."""
    names = ("select", "k", "budget", "depth", "share_cells", "max_fixations")
    tau = list(settings.tau) if settings.tau else None
    return {**{name: getattr(settings, name) for name in names}, "tau": tau}


def exit_depths(confidence: Floats, thresholds: Sequence[float]) -> Ints:
    """Return after which depth each image leaves; ``thresholds`` has one a depth but the last, at which all do.

    Args:
        confidence: (depth, image).
        thresholds: 0..1 or ``NEVER``.
    """
    reached = confidence[:-1] >= np.array(thresholds, np.float64).reshape(-1, 1)
    whole: Ints = np.vstack([reached, np.ones((1, confidence.shape[1]), np.bool_)]).argmax(0)
    return whole


def at_depths(values: NDArray[np.float64], depths: Ints) -> Floats:
    """Return of (depth, image, ...) what each image has at its depth."""
    found: Floats = values[depths, np.arange(len(depths))]
    return found


def exit_shares(late: float | Floats, depths: int) -> Floats:
    """Return the shares (..., depth) of images that leave after each depth: proportional to q^k, q = late / (1 - late).

    Args:
        late: (...,) 0..1; 0 lets all leave after the first depth, 1 after the last.
    """
    k, late = np.arange(depths), np.asarray(late, np.float64)[..., None]
    weights = late**k * (1 - late) ** (depths - 1 - k)
    shares: Floats = weights / weights.sum(-1, keepdims=True)
    return shares


def leavers(shares: Floats, images: int) -> Ints:
    """Return how many images have left after each depth but the last (..., depth - 1)."""
    return np.round(np.cumsum(shares[..., :-1], axis=-1) * images).astype(np.int64)


def thresholds_for(confidence: Floats, to_leave: Ints) -> tuple[float, ...]:
    """Return the thresholds at which, coarse to fine, so many images have left.

    Those with equal confidence leave together, and fewer after that.

    Args:
        confidence: (depth, image).
        to_leave: see ``leavers``.
    """
    waiting = np.ones(confidence.shape[1], np.bool_)
    found = []
    for here, target in zip(confidence[:-1], to_leave.tolist(), strict=True):
        count = target - int((~waiting).sum())
        threshold = float(np.sort(here[waiting])[-count]) if count > 0 else NEVER
        waiting &= here < threshold
        found.append(threshold)
    return tuple(found)


def fit_thresholds(table: ExitTable, budget: MeanBudget) -> tuple[float, ...]:
    """Return the thresholds, one a depth but the last, with which the held-out images cost what is allowed on average.

    The mean cost on these images is the greatest that is within the budget.

    Raises:
        ConfigError: less than the glances cost, or a cost that the table lacks.
    """
    if budget.unit not in table.costs:
        raise ConfigError("the bytes of the held-out images are unknown (OpenSlide's); give a budget of looks or macs")
    costs = table.costs[budget.unit]
    least, most = float(costs[0].mean()), float(costs[-1].mean())
    allowed = budget.amount * (1 + 1e-9)  # a mean of many is hardly ever a round number
    if allowed < least:
        raise ConfigError(
            f"a mean budget of {budget.amount:g} {budget.unit} is below what the first look alone costs, {least:g}"
        )
    if allowed >= most:
        return (NEVER,) * (len(costs) - 1)
    best, best_cost = (0.0,) * (len(costs) - 1), least
    shares = exit_shares(np.linspace(0, 1, _SWEPT), len(costs))
    for to_leave in np.unique(leavers(shares, costs.shape[1]), axis=0):
        found = thresholds_for(table.confidence, to_leave)
        cost = float(at_depths(costs, exit_depths(table.confidence, found)).mean())
        if best_cost < cost <= allowed:
            best, best_cost = found, cost
    return best


def fitted(table: Mapping[str, Any], settings: Settings, budget: MeanBudget) -> tuple[float, ...]:
    """Return the thresholds for a way of looking from a model file's table.

    Raises:
        ConfigError: there is no table, or one of another way of looking, or the budget is impossible.
    """
    how = "`pyrtrav evaluate --data DIR --save-exits MODEL` with the same options makes a copy of the model with one"
    if not table:
        raise ConfigError(f"the model file has no table of held-out exits to fit a mean budget on; {how}")
    kept, wanted = read_table(table), look_of(settings)
    other = [name for name, value in wanted.items() if kept.look.get(name) != value]
    if other:
        said = ", ".join(f"{name} {kept.look.get(name)}" for name in other)
        raise ConfigError(f"the model file's table of held-out exits is of another way of looking ({said}); {how}")
    return fit_thresholds(kept, budget)
