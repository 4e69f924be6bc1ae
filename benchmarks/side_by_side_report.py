"""One table and one figure of all methods and baselines, from the results of ``benchmarks.side_by_side``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.results import commands_of
from benchmarks.side_by_side_judge import mean_points
from pyrtrav.explain.charting import save_chart, style

Row = dict[str, Any]

TITLES = {
    "samples": "Tissue samples",
    "digits": "A digit in 128 px",
    "scenes": "Street scenes",
}
FIELDS = ("accuracy", "fixations", "macs", "pixels_decoded", "bytes_read", "seconds", "training_seconds")

FEWER = """\
Of `gfnet` also with places that nobody learned: random ones (mean of 3 draws) and the centre. With early exit images
leave when they are sure enough; the confidences are fitted to a mean cost on every other image and judged on the rest,
and the other way round. Here a belief after each depth is counted, which a run that asks for the last one alone does
not form."""

_FORMS: dict[str, Literal["-", "--", ":", "-."]] = {"learned": "-", "random": "--", "centre": ":", "early exit": "-."}

_MEANS = {
    "learned": "stopped after each look",
    "random": "at random places",
    "centre": "at the centre",
    "early exit": "early exit",
}

_COLOURS = {"topdown": "#c8102e", "mgnet": "#1f6feb", "gfnet": "#1a7f37", "mil": "#8250df", "fcn": "#606060"}


def gather(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return, for each task and arm, means over seeds, weighed by the images that were judged; of curves unweighed."""
    runs: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        runs.setdefault(row["task"], {}).setdefault(row["arm"], []).append(row)
    return {task: {arm: _merged(own) for arm, own in arms.items()} for task, arms in runs.items()}


def _merged(runs: Sequence[Row]) -> Row:
    images = sum(run["images"] for run in runs)
    means = {name: sum(run[name] * run["images"] for run in runs) / images for name in FIELDS}
    curves = {way: mean_points(run["curves"][way] for run in runs) for way in runs[0]["curves"]}
    return {**means, "images": images, "curves": curves}


def markdown(rows: Sequence[Row]) -> str:
    """Return the page."""
    gathered = gather(rows)
    lines = ["# The methods side by side", "", _introduction(rows), ""]
    lines += [
        "![Accuracy against computing, a panel for each task; lines are runs that stop earlier.](methods_compared.png)",
        "",
    ]
    header = (
        "| task | method | images | accuracy | looks | MMAC | Mpx decoded | kB read | ms an image | training, min |"
    )
    lines += [header, "|---|---|" + "---:|" * 8]
    for task, arms in gathered.items():
        for arm, row in arms.items():
            lines.append(f"| {TITLES[task]} | {arm} | {row['images']} | {_cells(row)} |")
    lines += ["", "## Accuracy and cost of fewer looks", "", FEWER, "", *_curves(gathered)]
    lines += ["", "## Settings", ""]
    lines += [f"- {row['name']}: `{' '.join(row['settings'])}`; {row['machine']}; {row['date'][:10]}" for row in rows]
    return "\n".join(lines) + "\n"


def _curves(gathered: dict[str, dict[str, Row]]) -> list[str]:
    """A run that stops after each depth, the glance first, or early: accuracy (looks, MMAC)."""
    lines = []
    for task, arms in gathered.items():
        for arm, row in arms.items():
            for way, points in row["curves"].items():
                shown = (f"{p['accuracy']:.3f} ({p['fixations']:.1f}, {p['macs'] / 1e6:,.1f})" for p in points)
                lines.append(f"| {TITLES[task]} | {arm} | {way} | {', '.join(shown)} |")
    header = [
        "| task | method | places | accuracy (looks, MMAC) after depth 0, 1, ..., or at ever higher mean costs |",
        "|---" * 4 + "|",
    ]
    return [*header, *lines]


def _introduction(rows: Sequence[Row]) -> str:
    commands = "; ".join(f"`{command}`" for command in commands_of(rows))
    return (
        f"Written by `python -m benchmarks.side_by_side report` from {commands}. In a task all arms have the same "
        "encoder and augmentation, and on tissue and digits the same number of epochs; the scenes are fold 0 of "
        "[scenes.md](scenes.md), whose signs only `topdown with hints` was shown in training. Each image is looked at "
        "by itself, with nothing in the cache. `fcn-N` sees the whole image at N pixels, `mil` every tile of the "
        "deepest level that the others reach. Milliseconds and minutes are those of a core of a machine that did other "
        "work beside."
    )


def _cells(row: Row) -> str:
    def shown(name: str, form: str, scale: float = 1.0) -> str:
        return format(row[name] * scale, form)

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


def draw_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against multiply-accumulates, a panel for each task; lines lead through what earlier stops cost."""
    gathered = gather(rows)
    with style():
        figure = Figure(figsize=(5.2 * max(len(gathered), 1), 5.2), layout="constrained")
        drawn: dict[str, None] = {}
        for number, (task, arms) in enumerate(gathered.items()):
            axes = figure.add_subplot(1, len(gathered), number + 1, title=TITLES[task])
            axes.set(xscale="log", xlabel="million multiply-accumulates an image")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            whole = sorted((row["macs"] / 1e6, row["accuracy"]) for arm, row in arms.items() if arm.startswith("fcn"))
            axes.plot(*zip(*whole, strict=True), color=_COLOURS["fcn"], linewidth=1)
            for arm, row in arms.items():
                method, _, more = arm.replace(" with ", "-with ").partition("-")
                drawn[method] = None
                x, y = row["macs"] / 1e6, row["accuracy"]
                for way, points in row["curves"].items():
                    xs, ys = zip(*((point["macs"] / 1e6, point["accuracy"]) for point in points), strict=True)
                    axes.plot(xs, ys, _FORMS[way], color=_COLOURS[method], linewidth=1)
                axes.plot([x], [y], "o", color=_COLOURS[method])
                note = f"{more} px" if method == "fcn" else more
                axes.annotate(note, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
            axes.margins(x=0.1, y=0.1)
            if number == 0:
                axes.set_ylabel("accuracy")
        keys = [Line2D([], [], color=_COLOURS[method], marker="o", label=method) for method in drawn]
        keys += [Line2D([], [], color="black", linestyle=form, label=_MEANS[way]) for way, form in _FORMS.items()]
        figure.legend(handles=keys, loc="outside lower center", ncols=-(-len(keys) // 2), frameon=False)
        save_chart(figure, path, "Accuracy against computing")
