"""The picture of a robustness report, from it alone: accuracy by corruption and severity, and under attack."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrtrav.explain.charting import FAINT, INK, save_chart, style
from pyrtrav.training.charts import BY_BUDGET, BY_DEPTH, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_robustness(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a table of accuracies in shades, and the accuracy under attack against eps."""
    from matplotlib.figure import Figure

    with style():
        parts = [name for name in ("corruptions", "attack") if report[name] is not None]
        figure = Figure(figsize=(6.5 * len(parts), 7 if "corruptions" in parts else 4.5), layout="constrained")
        model, data = report["model"], report["data"]
        figure.suptitle(
            f"{legible(model['name'])} ({model['method']}), {data['images']:,} images: "
            f"clean accuracy {report['clean']:.3f}",
            fontsize=11,
        )
        for name, axes in zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True):
            (_corruptions if name == "corruptions" else _attack)(axes, report)
        save_chart(figure, path, "Robustness")


def _corruptions(axes: Axes, report: Mapping[str, Any]) -> None:
    found = report["corruptions"]
    rows = [[*each["by_severity"], each["mean"]] for each in found["by_corruption"]]
    rows.append([*found["by_severity"], found["mean"]])
    values = np.array(rows)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else INK)
    axes.axvline(4.5, color="white", linewidth=3)
    axes.axhline(len(rows) - 1.5, color="white", linewidth=3)
    axes.set_xticks(range(6), [*"12345", "mean"])
    axes.set_yticks(range(len(rows)), [each["name"].replace("_", " ") for each in found["by_corruption"]] + ["mean"])
    axes.set_xlabel("severity")
    axes.set_title("Accuracy under common corruptions", fontsize=11)
    axes.tick_params(length=0)


def _attack(axes: Axes, report: Mapping[str, Any]) -> None:
    """Against whichever was varied more: eps or steps."""
    attack = report["attack"]
    eps, steps = (sorted({point[name] for point in attack["points"]}) for name in ("eps", "steps"))
    along, other = ("eps", "steps") if len(eps) >= len(steps) else ("steps", "eps")
    axes.axhline(report["clean"], color=FAINT, linestyle=":", label="clean")
    for number, fixed in enumerate(steps if other == "steps" else eps):
        points = sorted((point for point in attack["points"] if point[other] == fixed), key=lambda point: point[along])
        what = f"{fixed} step{'s' if fixed != 1 else ''}" if other == "steps" else f"eps {fixed:g}"
        for figure, colour, name in (("accuracy", BY_DEPTH, what), ("unrounded", BY_BUDGET, f"{what}, unrounded")):
            drawn = [(point[along], point[figure]) for point in points if point[figure] is not None]
            if drawn:
                marker, line = "osD^v"[number % 5], ("-", "--", "-.", ":")[number % 4]
                axes.plot(*zip(*drawn, strict=True), color=colour, marker=marker, linestyle=line, label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("eps, in 255ths" if along == "eps" else "steps")
    axes.set_ylabel("accuracy")
    axes.set_title(f"Accuracy under {attack['name']}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
