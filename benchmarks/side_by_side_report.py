"""One table and one figure of all methods and baselines, from the results of ``benchmarks.side_by_side``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pyrtrav.explain.charting import save_chart, style

Row = dict[str, Any]

TITLES = {
    "samples": "Tissue samples",
    "digits": "A digit in 224 px",
    "scenes": "Street scenes",
}
FIELDS = ("accuracy", "fixations", "macs", "pixels_decoded", "bytes_read", "seconds")

_COLOURS = {"topdown": "#c8102e", "mgnet": "#1f6feb", "gfnet": "#1a7f37", "mil": "#8250df", "fcn": "#606060"}


def gather(rows: Iterable[Row], scenes: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return, for each task and arm, means over seeds (and folds) of the fields, and how many images were judged."""
    runs: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        runs.setdefault(row["task"], {}).setdefault(row["arm"], []).append(row)
    for record in scenes:
        found = [{**row, "accuracy": float(row["label"] == row["predicted"])} for row in record["rows"]]
        own = {name: mean(row[name] for row in found) for name in FIELDS if name in found[0]}
        seconds = record["training"]["seconds"]
        row = {**own, "images": len(found), "training_seconds": seconds, "date": record["date"]}
        arm = record["arm"] + (" with hints" if record["track"] == "hints" else "")
        runs.setdefault("scenes", {}).setdefault(arm, []).append(row)
    return {task: {arm: _merged(own) for arm, own in arms.items()} for task, arms in runs.items()}


def _merged(runs: Sequence[Row]) -> Row:
    images = sum(run["images"] for run in runs)
    fields = [name for name in (*FIELDS, "training_seconds") if all(run.get(name) is not None for run in runs)]
    means = {name: sum(run[name] * run["images"] for run in runs) / images for name in fields}
    curves = {way: _mean_curve([run["curves"][way] for run in runs]) for way in runs[0].get("curves", {})}
    return {**means, "images": images, "curves": curves}


def _mean_curve(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """The mean over runs after each depth."""
    return [{name: mean(run[name] for run in depth) for name in depth[0]} for depth in zip(*runs, strict=True)]


def markdown(rows: Sequence[Row], scenes: Sequence[Row]) -> str:
    """Return the page."""
    gathered = gather(rows, scenes)
    lines = ["# The methods side by side", "", _introduction(rows, scenes), ""]
    lines += [
        "![Accuracy against computing, a panel for each task; lines are runs that stop earlier, dashed at random "
        "places, dotted at the centre.](methods_compared.png)",
        "",
    ]
    header = (
        "| task | method | images | accuracy | looks | MMAC | Mpx decoded | kB read | ms an image | training, min |"
    )
    lines += [header, "|---|---|" + "---:|" * 8]
    for task, arms in gathered.items():
        for arm, row in arms.items():
            lines.append(f"| {TITLES[task]} | {arm} | {row['images']} | {_cells(row)} |")
    if rows:
        lines += ["", "## Accuracy and cost after each look", "", *_curves(gathered)]
        lines += ["", "## Settings", ""]
        lines += [
            f"- {row['name']}: `{' '.join(row['settings'])}`; {row['machine']}; {row['date'][:10]}" for row in rows
        ]
    return "\n".join(lines) + "\n"


def _curves(gathered: dict[str, dict[str, Row]]) -> list[str]:
    """A run that stops after each depth, the glance first: accuracy (looks, MMAC)."""
    lines = []
    for task, arms in gathered.items():
        for arm, row in arms.items():
            for way, points in row["curves"].items():
                shown = (f"{p['accuracy']:.3f} ({p['fixations']:.1f}, {p['macs'] / 1e6:,.1f})" for p in points)
                lines.append(f"| {TITLES[task]} | {arm} | {way} | {', '.join(shown)} |")
    header = [
        "| task | method | places | accuracy (looks, MMAC) of a run that stops after depth 0, 1, ... |",
        "|---" * 4 + "|",
    ]
    return [*header, *lines]


def _introduction(rows: Sequence[Row], scenes: Sequence[Row]) -> str:
    commands = sorted({row["command"] for row in rows})
    return (
        "Written by `python -m benchmarks.side_by_side report` from "
        + "; ".join(f"`{command}`" for command in commands)
        + (", and from the street scenes' own runs ([scenes.md](scenes.md))." if scenes else ".")
        + " In a task all arms have the same encoder and augmentation, and on tissue and digits the same number of "
        "epochs; each image is looked at by itself, with nothing in the cache. `fcn-N` sees the whole image at N "
        "pixels, `mil` every tile of the finest level. Minutes of training are those of a machine that did other work "
        "beside."
    )


def _cells(row: Row) -> str:
    def shown(name: str, form: str, scale: float = 1.0) -> str:
        return format(row[name] * scale, form) if name in row else ""

    cells = (
        shown("accuracy", ".3f"),
        shown("fixations", ".1f"),
        shown("macs", ",.1f", 1e-6),
        shown("pixels_decoded", ".3f", 1e-6),
        shown("bytes_read", ",.1f", 1e-3),
        shown("seconds", ".0f", 1e3),
        shown("training_seconds", ".1f", 1 / 60),
    )
    return " | ".join(cells)


def draw_chart(rows: Sequence[Row], scenes: Sequence[Row], path: Path) -> None:
    """Draw accuracy against multiply-accumulates, a panel for each task; lines lead through what earlier stops cost.

    Dashed: random places, dotted: the centre.
    """
    gathered = gather(rows, scenes)
    with style():
        figure = Figure(figsize=(5.2 * max(len(gathered), 1), 4.6), layout="constrained")
        for number, (task, arms) in enumerate(gathered.items()):
            axes = figure.add_subplot(1, len(gathered), number + 1, title=TITLES[task])
            axes.set(xscale="log", xlabel="million multiply-accumulates an image", ylim=(0, 1.05))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            whole = sorted((row["macs"] / 1e6, row["accuracy"]) for arm, row in arms.items() if arm.startswith("fcn"))
            axes.plot(*zip(*whole, strict=True), color=_COLOURS["fcn"], linewidth=1)
            for arm, row in arms.items():
                x, y = row["macs"] / 1e6, row["accuracy"]
                colour = _COLOURS[arm.split("-")[0].split()[0]]
                for way, points in row["curves"].items():
                    form = {"learned": "-", "random": "--", "centre": ":"}[way]
                    xs, ys = zip(*((point["macs"] / 1e6, point["accuracy"]) for point in points), strict=True)
                    axes.plot(xs, ys, form, color=colour, linewidth=1)
                axes.plot([x], [y], "o", color=colour)
                below = -14 if not arm.startswith("fcn") else 7
                axes.annotate(arm, (x, y), xytext=(0, below), textcoords="offset points", ha="center", fontsize=9)
            axes.margins(x=0.2)
            if number == 0:
                axes.set_ylabel("accuracy")
        save_chart(figure, path, "Accuracy against computing")
