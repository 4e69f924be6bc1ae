"""The tables of the multi-glimpse toy experiments, beside the paper's.

python -m benchmarks.mgnet_report runs/mgnet_mnist/results.jsonl --markdown docs/multi_glimpse.md
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.differences import Difference, of_shares
from benchmarks.mgnet_train import DATASETS
from benchmarks.results import commands_of, days_of, machines_of, read_results
from pyrtrav.files import written_whole

Row = dict[str, Any]

PAPER: dict[str, tuple[float, ...]] = {
    "translated-mgnet": (84.37, 99.31, 99.54),
    "translated-ff": (99.48,),
    "gaussian-mgnet": (63.19, 97.88, 98.87, 99.02, 99.07),
    "gaussian-ff": (99.10,),
}
"""Table 4: accuracy in per cent after each glimpse."""
PAPER_MMAC = {"mgnet": (3.471, 7.011, 10.619, 14.296, 18.042), "ff": (67.95,)}
TITLES = {"translated": "translated", "gaussian": "translated, Gaussian noise"}


VERDICTS = """\
What differs by less than two standard errors (after ±) is undecided: those of the mean over the 15 kinds of corruption,
and of accuracies of as many images as were attacked. At the paper's eps, 4, hardly anything falls: digits are black and
white, so that 16 is shown too."""


def models(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the results of each model, seed by seed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['dataset']}-{row['model']}", []).append(row)
    return found


def over_seeds(rows: list[Row], values: Any) -> list[float]:
    """Return the mean over seeds of what ``values`` takes from a result, one after each glimpse."""
    return [mean(each) for each in zip(*(values(row) for row in rows), strict=True)]


def table_4(found: dict[str, list[Row]]) -> list[str]:
    """Accuracy and cost after each glimpse, ours and the paper's."""
    lines = ["| data | model | MMAC | the paper's | accuracy, % | the paper's |", "|---|---|---|---|---|---|"]
    for name in (f"{dataset}-{model}" for dataset in DATASETS for model in ("ff", "mgnet")):
        dataset, model = name.split("-")
        if name not in found:
            lines.append(f"| {TITLES[dataset]} | {model} | | | not trained | |")
            continue
        accuracies = over_seeds(found[name], lambda row: row["accuracies"])
        macs = over_seeds(found[name], lambda row: row["macs"])
        for glimpse, (accuracy, cost) in enumerate(zip(accuracies, macs, strict=True)):
            title = "feed-forward" if model == "ff" else f"{glimpse + 1} glimpse{'s' if glimpse else ''}"
            lines.append(
                f"| {TITLES[dataset]} | {title} | {cost / 1e6:.3f} | {PAPER_MMAC[model][glimpse]:.3f} "
                f"| {100 * accuracy:.2f} | {PAPER[name][glimpse]:.2f} |"
            )
    return lines


def corruption_table(found: dict[str, list[Row]], dataset: str) -> list[str]:
    """Accuracy under each corruption: a column for each model and glimpse."""
    columns: list[tuple[str, list[float]]] = []
    for model in ("ff", "mgnet"):
        for row in (results := found.get(f"{dataset}-{model}", []))[:1]:
            names = list(row["corruptions"])
            clean = over_seeds(results, lambda each: each["clean"])
            changed = [over_seeds(results, lambda each, name=name: each["corruptions"][name]) for name in names]
            for glimpse, values in enumerate(zip(*changed, strict=True)):
                title = "feed-forward" if model == "ff" else f"glimpse {glimpse + 1}"
                columns.append((title, [clean[glimpse], mean(values), *values]))
    lines = [f"| | {' | '.join(title for title, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for number, name in enumerate(["as it is", "mean of all", *(name.replace("_", " ") for name in names)]):
        lines.append(f"| {name} | {' | '.join(f'{100 * values[number]:.1f}' for _, values in columns)} |")
    return lines


def attack_table(found: dict[str, list[Row]], dataset: str) -> list[str]:
    """Accuracy of the last answer under PGD."""
    asked = sorted(
        {(float(e), int(s)) for row in _all(found, dataset) for e in row["attacked"] for s in row["attacked"][e]}
    )
    lines = [
        "| model | " + " | ".join(f"eps {eps:g}, {steps} steps" for eps, steps in asked) + " |",
        "|---" * (len(asked) + 1) + "|",
    ]
    for model in ("ff", "mgnet"):
        values = [attack_accuracy(found, dataset, model, eps, steps) for eps, steps in asked]
        title = "feed-forward" if model == "ff" else "mgnet, all glimpses"
        lines.append(f"| {title} | " + " | ".join("" if v is None else f"{100 * v:.1f}" for v in values) + " |")
    return lines


def _all(found: dict[str, list[Row]], dataset: str) -> list[Row]:
    return [row for model in ("ff", "mgnet") for row in found.get(f"{dataset}-{model}", [])]


def attack_accuracy(found: dict[str, list[Row]], dataset: str, model: str, eps: float, steps: int) -> float | None:
    """Return what is left of the accuracy, or None where that was not asked."""
    rows = [row["attacked"].get(f"{eps:g}", {}) for row in found.get(f"{dataset}-{model}", [])]
    values = [row[str(steps)][-1] for row in rows if str(steps) in row]
    return mean(values) if values else None


def orderings(found: dict[str, list[Row]], dataset: str) -> list[str]:
    """The four claims of the robustness section, with our figures."""
    ff, glimpses = found.get(f"{dataset}-ff"), found.get(f"{dataset}-mgnet")
    if ff is None or glimpses is None:
        return ["Not trained yet."]
    kinds = list(ff[0]["corruptions"])

    def over_kinds(rows: list[Row], glimpse: int) -> NDArray[np.float64]:
        return np.array([over_seeds(rows, lambda row, kind=kind: row["corruptions"][kind])[glimpse] for kind in kinds])

    lines = ["| | the paper's claim | here | verdict |", "|---|---|---|---|"]
    for number, glimpse, claim in (
        (1, -1, "corruptions: all glimpses are above the feed-forward net"),
        (2, 0, "corruptions: a single glimpse is above it already"),
    ):
        gaps = over_kinds(glimpses, glimpse) - over_kinds(ff, 0)
        gap = Difference(float(gaps.mean()), float(gaps.std(ddof=1)) / math.sqrt(len(gaps)))
        means = f"{100 * over_kinds(glimpses, glimpse).mean():.1f} against {100 * over_kinds(ff, 0).mean():.1f}"
        here = f"{means}; {gap}, above in {(gaps > 0).sum()} of {len(gaps)}"
        lines.append(f"| {number} | {claim} | {here} | {gap.above()} |")
    for number, steps, claim in (
        (3, (4, 4), "PGD of 4 steps: glimpses are above the feed-forward net"),
        (4, (300, 20), "PGD: glimpses after 300 steps are above the feed-forward net after 20"),
    ):
        for eps in sorted({float(e) for row in glimpses for e in row["attacked"]}):
            ours, theirs = (
                attack_accuracy(found, dataset, model, eps, count)
                for model, count in zip(("mgnet", "ff"), steps, strict=True)
            )
            if ours is None or theirs is None:
                lines.append(f"| {number} | {claim} | eps {eps:g} | not asked |")
                continue
            gap = of_shares(ours, theirs, sum(row["attacked_images"] for row in glimpses))
            here = f"eps {eps:g}: {100 * ours:.1f} against {100 * theirs:.1f}; {gap}"
            lines.append(f"| {number} | {claim} | {here} | {gap.above()} |")
    return lines


def write_report(rows: list[Row]) -> str:
    """Return the page."""
    found = models(rows)
    schedule = rows[0]["schedule"]
    seconds = ", ".join(f"{row['name']} {row['seconds'] / 60:.0f}" for row in rows)
    parts = [
        "# Multi-glimpse network: the toy experiments",
        "",
        f"Written by `python -m benchmarks.mgnet_report`; {days_of(rows)}, {machines_of(rows)}; "
        f"{', '.join(f'{k} {v}' for k, v in schedule.items())}; the paper's 400 epochs are of its "
        f"other experiments. Minutes of training: {seconds}.",
        "",
        *(f"    {command}" for command in commands_of(rows)),
        "",
        "## Table 4",
        "",
        "Accuracy on the 5,000 validation digits, each at a new place.",
        "",
        *table_4(found),
    ]
    for dataset in DATASETS:
        if not _all(found, dataset):
            continue
        some = _all(found, dataset)[0]
        parts += [
            "",
            f"## Robustness: {TITLES[dataset]}",
            "",
            *orderings(found, dataset),
            "",
            VERDICTS,
            "",
            f"Accuracy in per cent under the 15 common corruptions, mean of 5 severities, {some['corrupted_images']} "
            "images:",
            "",
            *corruption_table(found, dataset),
            "",
            f"Under PGD in pixels that stay colours, steps of a quarter of eps, {some['attacked_images']} images, "
            "whole numbers:",
            "",
            *attack_table(found, dataset),
        ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--markdown", type=Path, default=Path("docs/multi_glimpse.md"))
    asked = parser.parse_args()
    rows = read_results(asked.results)
    if not rows:
        parser.error(f"{asked.results}: holds no results")
    with written_whole(asked.markdown) as beside:
        beside.write_text(write_report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
