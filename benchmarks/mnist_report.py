"""Figure 4 and the ten claims, from the results of the MNIST experiments.

    python -m benchmarks.mnist_report runs/topdown_mnist/results.jsonl --markdown docs/topdown_mnist.md \\
        --figure docs/topdown_mnist.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.mnist_chart import draw_figure
from benchmarks.mnist_images import VARIANTS
from benchmarks.results import commands_of, days_of, machines_of, read_results
from pyrtrav.files import written_whole

LEVEL = 0.002
"""Accuracies that differ by less are called level."""

Row = dict[str, Any]


class MissingError(Exception):
    """A model that a claim needs is not trained yet."""


@dataclass(frozen=True)
class Point:
    """Models of one kind, over seeds."""

    accuracy: float
    spread: float
    """Deviation between seeds; with one seed, between the draws of its evaluation."""
    cells: float
    macs: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} ± {100 * self.spread:.2f}"


class Results:
    """The accuracies by what a model is."""

    def __init__(self, rows: Iterable[Row], starts: Sequence[str] = ("scratch", "gradual")) -> None:
        self.rows = [row for row in rows if not row["options"]]
        self.starts = starts

    def point(
        self, variant: str, model: str, pair: int, resolution: int, c_t: float | None = None, start: str | None = None
    ) -> Point:
        """Return one kind; without ``start`` the better of ``starts``, as in the paper's figure."""
        if start is None:
            found = []
            for each in self.starts:
                try:
                    found.append(self.point(variant, model, pair, resolution, c_t, each))
                except MissingError:
                    continue
            if not found:
                raise MissingError
            return max(found, key=lambda point: point.accuracy)
        wanted = (variant, model, pair, resolution, c_t, start)
        rows = [
            row
            for row in self.rows
            if (row["variant"], row["model"], row["pair"], row["resolution"], row["c_t"], row["start"]) == wanted
        ]
        if not rows:
            raise MissingError
        accuracies = [row["accuracy"] for row in rows] if len(rows) > 1 else rows[0]["accuracies"]
        return Point(
            mean(row["accuracy"] for row in rows),
            stdev(accuracies) if len(accuracies) > 1 else 0.0,
            mean(row["cells"] for row in rows),
            mean(row["macs"] for row in rows),
        )


Verdict = tuple[bool, str]


def _claims(found: Results) -> list[tuple[str, Callable[[], Verdict]]]:
    """The ten claims in the words of the facts, each with what decides it and the figures."""
    point = found.point

    def m3_plain() -> Verdict:
        m, bl = point("plain", "M", 3, 28, 2.0), point("plain", "BL", 3, 28)
        return m.accuracy > 0.99 and 0 <= bl.accuracy - m.accuracy < 0.01, f"M3 {m} ({m.cells:.1f} cells), BL3 {bl}"

    def m3_grows() -> Verdict:
        line = [point("plain", "M", 3, 14), point("plain", "M", 3, 28, 2.0)]
        line += [point("plain", "M", 3, 56, c_t) for c_t in (6.0, 12.0)]
        steps = [b.accuracy - a.accuracy for a, b in pairwise(line)]
        return min(steps) > -LEVEL and steps[0] > steps[1] > steps[2] - LEVEL, " → ".join(map(str, line))

    def bl2(variant: str, sign: int) -> Callable[[], Verdict]:
        def decide() -> Verdict:
            small, large = point(variant, "BL", 2, 28), point(variant, "BL", 2, 56)
            return sign * (large.accuracy - small.accuracy) > 0, f"28 px {small}, 56 px {large}"

        return decide

    def m1_plain() -> Verdict:
        pairs = [(point("plain", "M", 1, 28, 2.0), point("plain", "BL", 1, 28))]
        pairs += [(point("plain", "M", 1, 56, c_t), point("plain", "BL", 1, 56)) for c_t in (6.0, 12.0)]
        least = min(m.accuracy - bl.accuracy for m, bl in pairs)
        glance = point("plain", "BL", 1, 14)
        text = f"leads of {100 * least:.1f} points or more; BL1 at 14 px {glance}, at 56 px {pairs[1][1]}"
        return least > 0.05 and pairs[1][1].accuracy < glance.accuracy, text

    def m1_textured() -> Verdict:
        def leads(variant: str) -> list[float]:
            kinds = [(28, 2.0), (56, 12.0)]
            return [point(variant, "M", 1, r, c).accuracy - point(variant, "BL", 1, r).accuracy for r, c in kinds]

        plain, textured = leads("plain"), leads("textured")
        text = ", ".join(
            f"{r} px: {100 * a:.1f} on plain, {100 * b:.1f} on textured"
            for r, a, b in zip((28, 56), plain, textured, strict=True)
        )
        return all(b > a for a, b in zip(plain, textured, strict=True)), text

    def m3_noisy() -> Verdict:
        small, six, twelve = point("noisy", "M", 3, 28, 2.0), *(point("noisy", "M", 3, 56, c) for c in (6.0, 12.0))
        held = six.accuracy < small.accuracy and twelve.accuracy > small.accuracy - LEVEL
        return held, f"28 px {small}; 56 px: c_t 6 {six}, c_t 12 {twelve}"

    def bl3_noisy() -> Verdict:
        small, large = point("noisy", "BL", 3, 28), point("noisy", "BL", 3, 56)
        return large.accuracy > small.accuracy, f"28 px {small}, 56 px {large}"

    def others_noisy() -> Verdict:
        kinds = [(pair, point("noisy", "M", pair, 28, 2.0), point("noisy", "M", pair, 56, 6.0)) for pair in (2, 1)]
        text = "; ".join(f"M{pair}: 28 px {small}, 56 px {large}" for pair, small, large in kinds)
        return all(large.accuracy < small.accuracy for _, small, large in kinds), text

    def settles() -> Verdict:
        rows = [row for row in found.rows if row["c_t"] is not None]
        if not rows:
            raise MissingError
        off = [abs(row["cells"] / row["c_t"] - 1) for row in rows]
        text = f"{len(rows)} models: off by {100 * mean(off):.0f} % on average, at most {100 * max(off):.0f} %"
        return max(off) < 0.25 and mean(off) < 0.1, text

    return [
        ("plain: M3 at 28 px attending about 2.2 cells is over 99 % accurate, a little below BL3 at 28 px", m3_plain),
        ("plain: M3's accuracy grows with resolution and cells attended, and saturates at 56 px", m3_grows),
        ("plain: BL2 at 56 px is below BL2 at 28 px", bl2("plain", -1)),
        ("plain: M1 at 28 and 56 px is far above BL1 there, and BL1 at 56 px is below BL1 at 14 px", m1_plain),
        ("textured: BL2 at 56 px is above BL2 at 28 px", bl2("textured", 1)),
        ("textured: the lead of M1 over BL1 is larger than on plain", m1_textured),
        ("noisy: M3 at 56 px with about 6 cells is below M3 at 28 px, with about 12 level again", m3_noisy),
        ("noisy: BL3 at 56 px is above BL3 at 28 px", bl3_noisy),
        ("noisy: M2 and M1 at 56 px with about 6 cells are below M2 and M1 at 28 px", others_noisy),
        ("everywhere: with rule (4) the mean number of attended cells settles at c_t", settles),
    ]


def claims_table(rows: Sequence[Row]) -> str:
    """The claims as a markdown table: of the better start, as in the paper, and of models from scratch alone.

    A gradual model has its parents' epochs besides its own, which weighs where there are few.
    """
    lines = [
        "| | claim | the better start | reproduced | from scratch alone | reproduced |",
        "|---|---|---|---|---|---|",
    ]
    ways = [_claims(Results(rows)), _claims(Results(rows, ("scratch",)))]
    for number, each in enumerate(zip(*ways, strict=True), 1):
        cells = []
        for _, decide in each:
            try:
                held, text = decide()
                cells.append(f"{text} | {'yes' if held else '**no**'}")
            except MissingError:
                cells.append("| not trained")
        if cells[0] == cells[1]:
            cells[1] = "the same |"
        lines.append(f"| {number} | {each[0][0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def models_table(found: Results) -> str:
    """Every kind of model as a markdown table."""
    lines = [
        "| variant | model | px | c_t | from scratch | gradual | cells | MMAC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = {(row["variant"], row["model"], row["pair"], row["resolution"], row["c_t"]) for row in found.rows}
    for kind in sorted(kinds, key=lambda k: (VARIANTS.index(k[0]), -k[2], k[1], k[3], k[4] or 0)):
        cells = []
        for start in ("scratch", "gradual"):
            try:
                cells.append(str(found.point(*kind, start)))
            except MissingError:
                cells.append("")
        best = found.point(*kind)
        variant, model, pair, resolution, c_t = kind
        own = f"{best.cells:.2f}" if c_t else ""
        lines.append(
            f"| {variant} | {model}{pair} | {resolution} | {f'{c_t:g}' if c_t else ''} | {cells[0]} | {cells[1]} "
            f"| {own} | {best.macs / 1e6:.2f} |"
        )
    return "\n".join(lines)


def provenance(rows: list[Row]) -> str:
    """Where the numbers come from."""
    schedule = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in rows[0]["schedule"].items())
    commands = "\n".join(f"    {command}" for command in commands_of(rows))
    seeds = sorted({row["seed"] for row in rows})
    return f"{len(rows)} models, {days_of(rows)}, seeds {seeds}, on {machines_of(rows)}; {schedule}.\n\n{commands}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables there (default: print them)")
    parser.add_argument("--figure", type=Path, help="write figure 4 there, as PNG")
    asked = parser.parse_args()
    rows = read_results(asked.results)
    if not rows:
        parser.error(f"{asked.results}: holds no results; run `python -m benchmarks.topdown_mnist` first")
    found = Results(rows)
    parts = ["# The MNIST experiments of the top-down paper", provenance(rows), "## Claims", claims_table(rows)]
    parts += ["## Models", "Accuracy on the validation images, in per cent.", models_table(found)]
    text = "\n\n".join(parts) + "\n"
    if asked.markdown is None:
        print(text)
    else:
        with written_whole(asked.markdown) as beside:
            beside.write_text(text, encoding="utf-8")
    if asked.figure is not None:
        with written_whole(asked.figure) as beside:
            draw_figure(found.rows).save(beside, "PNG")


if __name__ == "__main__":
    main()
