"""The pictures of an evaluation: the confusion matrix, and accuracy against cost.

Drawn from the report alone, by matplotlib without its global state: no window system, no user's style.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrtrav.explain.charting import FAINT, INK, save_chart, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_DEPTH, BY_BUDGET, BY_CONFIDENCE = "#0072b2", "#d55e00", "#009e73"
"""Blue, vermilion and green of Okabe and Ito: told apart by colour-blind readers, and by their markers in print."""

_NAMES = {
    "depth": "one run, judged after each depth (number: depth)",
    "budget": "a run for each budget (number: looks)",
}
_OFFSETS: dict[str, tuple[tuple[int, int], str]] = {
    "depth": ((-6, 6), "right"),
    "budget": ((6, -14), "left"),
}
"""Where the number stands beside its point, so that all can be read: in points, and how it is aligned."""

COST_NAMES = {
    "fixations": "looks an image",
    "macs": "multiply-accumulates an image",
    "pixels_decoded": "pixels decoded an image",
    "seconds": "seconds an image, measured on this machine",
}

_MOST_ROOMY, _MOST_NUMBERED = 8, 25
"""Classes up to which the cells of a confusion matrix have room for counts and shares, and for counts."""

_MOST_NAMED = 50
"""Classes that its axes have room for; of more, every so many is named."""


def save_confusion(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw how often each true class (row) was taken for which (column)."""
    with style():
        save_chart(_confusion(report), path, "Confusion matrix")


def save_cost(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw accuracy against looks, multiply-accumulates, pixels and seconds, by depth, by budget and by confidence."""
    with style():
        save_chart(_cost(report), path, "Accuracy against cost")


def legible(text: str, length: int = 40) -> str:
    """Return the text in characters that the font has, its middle left out where it is long."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    kept = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
    return (
        kept
        if len(kept) <= length
        else f"{kept[: length - length // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{kept[-(length // 2) :]}"
    )


def _subject(report: Mapping[str, Any]) -> str:
    data = report["data"]
    split = "" if data["split"] == "all" else f" ({data['split']})"
    source = legible(os.path.basename(data["path"]))
    return f"{legible(report['model']['name'])} on {data['images']:,} images of {source}{split}"


# Confusion.


def _confusion(report: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    confusion = report["confusion"]
    counts, failed = np.array(confusion["counts"]), np.array(confusion["failed"])
    columns = [legible(name, 24) for name in confusion["classes"]]
    if failed.any():
        counts = np.column_stack([counts, failed])
        columns.append("failed")
    totals = counts.sum(1)
    roomy = len(columns) <= _MOST_ROOMY
    form = "{}\n{:,} images" if roomy else "{} ({:,})"
    rows = [form.format(legible(name, 24), n) for name, n in zip(confusion["classes"], totals, strict=True)]
    shares = counts / np.maximum(totals, 1)[:, None]
    side = max(1.15 * len(columns), 3.2) if roomy else min(max(0.42 * len(columns), 7.5), 16.0)
    figure = Figure(figsize=(side + 3.4, side * len(rows) / len(columns) + 2.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = math.ceil(len(columns) / _MOST_NAMED)
    upright = 0 if len("".join(columns)) < 14 * side else 90
    axes.set_xticks(range(0, len(columns), step), columns[::step], rotation=upright)
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _draw_edges(axes, len(columns), len(rows))
    if len(columns) <= _MOST_NUMBERED:
        _write_cells(axes, counts, shares, roomy)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    accuracy = report["metrics"]["accuracy"]
    figure.suptitle(f"{_subject(report)}\naccuracy {_with_interval(accuracy)}", fontsize=12)
    return figure


def _draw_edges(axes: Axes, columns: int, rows: int) -> None:
    """White lines between the cells."""
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)


def _write_cells(axes: Axes, counts: Any, shares: Any, roomy: bool) -> None:
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count:,}\n{shares[row, column]:.0%}" if roomy else f"{count:,}" if count else ""
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=12 if roomy else 9)


def _with_interval(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3f} (95% interval {figure['low']:.3f} to {figure['high']:.3f})"


# Accuracy against cost.


def _cost(report: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.subplots(2, 2, sharey=True)
    lowest = _lowest(report)
    for axes, name in zip(grid.flat, COST_NAMES, strict=True):
        _draw_series(axes, report["by_depth"], name, "depth", BY_DEPTH, "o-")
        _draw_series(axes, report["by_budget"], name, "budget", BY_BUDGET, "s--")
        _draw_sweep(axes, report.get("by_confidence", ()), name)
        _draw_floor(axes, report)
        _scale(axes, name, lowest)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    unit = "groups" if report["bootstrap"]["unit"] == "group" else "images"
    notes = [f"bars and band: 95% intervals by resampling the {report['bootstrap']['units']:,} {unit}"]
    if report["model"]["multi_level"] is False and len(report["by_depth"]) > 1:
        notes.append("the model was trained for its last depth alone")
    figure.suptitle(f"Accuracy against cost: {_subject(report)}\n{'; '.join(notes)}", fontsize=13)
    return figure


def _draw_series(axes: Axes, points: Sequence[Mapping[str, Any]], cost: str, kind: str, colour: str, form: str) -> None:
    """A line through the points, each with its interval and its number."""
    points = [point for point in points if point["cost"][cost] is not None]
    if not points:
        return
    x = np.array([point["cost"][cost] for point in points])
    figures = [point["metrics"]["accuracy"] for point in points]
    y, low, high = (np.array([figure[end] for figure in figures]) for end in ("value", "low", "high"))
    axes.errorbar(
        x,
        y,
        yerr=np.maximum([y - low, high - y], 0),
        fmt=form,
        color=colour,
        label=_NAMES[kind],
        markersize=7,
        capsize=3,
        elinewidth=1,
        linewidth=1.8,
        markeredgecolor="white",
        zorder=3,
    )
    offset, side = _OFFSETS[kind]
    style: dict[str, Any] = {"ha": side, "color": colour, "weight": "bold", "zorder": 4}
    for place, text in joined_names(x.tolist(), y.tolist(), [str(point[kind]) for point in points]):
        axes.annotate(text, place, offset, textcoords="offset points", **style)


def _draw_sweep(axes: Axes, points: Sequence[Mapping[str, Any]], cost: str) -> None:
    """A fine line through the points, within the band of their intervals, with some of the confidences."""
    points = [point for point in points if point["cost"][cost] is not None]
    if not points:
        return
    points = sorted(points, key=lambda point: float(point["cost"][cost]))
    x = [point["cost"][cost] for point in points]
    y, low, high = ([point["metrics"]["accuracy"][end] for point in points] for end in ("value", "low", "high"))
    label = "images leave early (small numbers: confidence)"
    axes.fill_between(x, low, high, color=BY_CONFIDENCE, alpha=0.12, linewidth=0, zorder=2)
    axes.plot(x, y, "^:", color=BY_CONFIDENCE, label=label, markersize=5, linewidth=1.4, zorder=3)
    style: dict[str, Any] = {"ha": "right", "va": "center", "color": BY_CONFIDENCE, "fontsize": 8, "zorder": 4}
    for place, text in joined_names(x, y, [f"{point['stop_at']:g}" for point in points]):
        first, *others = text.split(", ")
        spoken = f"{first}\N{EN DASH}{others[-1]}" if others else first
        axes.annotate(spoken, place, (-7, 0), textcoords="offset points", **style)


def joined_names(x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> list[tuple[tuple[float, float], str]]:
    """Return where to write which name; points so near that their names would overlap share one text."""
    near = 0.06 * max(math.log(max(x) / min(x)), math.log(16))
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for place in zip(x, y, names, strict=True):
        for (left, height), members in groups:
            if abs(math.log(place[0] / left)) < near and abs(place[1] - height) < 0.05:
                members.append(place[2])
                break
        else:
            groups.append(((place[0], place[1]), [place[2]]))
    return [(place, ", ".join(members)) for place, members in groups]


def _draw_floor(axes: Axes, report: Mapping[str, Any]) -> None:
    """What naming the largest class for every image would reach."""
    data = report["data"]
    largest = max(data["by_class"].values()) / data["images"]
    axes.axhline(largest, color=FAINT, linestyle=":", linewidth=1.2, label="always the largest class", zorder=1)


def _lowest(report: Mapping[str, Any]) -> float:
    """Where the axis of accuracies begins: a round value below all that is drawn."""
    data = report["data"]
    points = (*report["by_depth"], *report["by_budget"], *report.get("by_confidence", ()))
    ends = [point["metrics"]["accuracy"]["low"] for point in points]
    lowest: float = min([*ends, max(data["by_class"].values()) / data["images"]])
    return max(0.0, math.floor(lowest * 10 - 0.5) / 10)


def _scale(axes: Axes, cost: str, lowest: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.margins(x=0.1)
    left, right = axes.get_xlim()
    if right < 4 * left:  # points of one cost, or nearly: a log axis of less than a decade has no round ticks
        middle = (left * right) ** 0.5
        axes.set_xlim(middle / 4, middle * 4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}" if cost == "seconds" else EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(lowest, 1.07)
    axes.set_xlabel(COST_NAMES[cost])
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
