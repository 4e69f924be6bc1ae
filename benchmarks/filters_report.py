"""Tables 1 to 3 and figure 3 of the paper on learned filter sizes, from results of ours beside its own.

    python -m benchmarks.filters_report runs/learned_filters/results.jsonl --out docs/learned_filters.md

The figure goes beside the page, as PNG of the same name. Results of several kinds of network (filters, layers, block,
stride) make a section each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from benchmarks.filters_claims import Results, Row, decide_all
from benchmarks.filters_jobs import DEPTH, ONE
from benchmarks.results import commands_of, days_of, machines_of, read_results
from pyrtrav.encoders.multigrid import DESIGNS
from pyrtrav.errors import PyrtravError
from pyrtrav.explain.encoder_chart import save_structures_chart
from pyrtrav.files import written_whole

Kind = tuple[int, int, str, int]
"""Filters, layers, block, stride of the image layer."""

TITLES: dict[tuple[str, str | None], str] = {
    ("no-pooling", None): "No Pooling",
    ("predefined", None): "Predefined Pooling",
    ("scale-invariant", None): "Scale Invariant",
    ("learned", None): "Our Model",
    ("learned", "0.1"): "Our Model (thr 0.1)",
    ("learned", "0.2"): "Our Model (thr 0.2)",
    ("learned", ONE): "Our Model (one res.)",
    (DEPTH, None): "Our Model, Learning Depth",
}
"""The rows as the paper calls them."""

TABLE_1 = {
    "No Pooling": (87.3, 0.31),
    "Predefined Pooling": (90.0, 0.26),
    "Scale Invariant": (89.2, 0.41),
    "Our Model": (92.5, 0.41),
    "Our Model (thr 0.1)": (92.5, 0.29),
    "Our Model (thr 0.2)": (92.3, 0.27),
    "Our Model (one res.)": (91.1, 0.26),
    "Our Model, Learning Depth": (92.0, None),
}
"""64 filters, 10 layers: accuracy in per cent, and 1e9 multiply-accumulates; the last row is table 3's."""

TABLE_2 = {
    "No Pooling": {16: 71.8, 32: 82.8},
    "Scale Invariant": {16: 78.2, 32: 84.0},
    "Predefined Pooling": {16: 83.3, 32: 89.0},
    "Our Model": {16: 83.9, 32: 89.9},
}
"""10 layers: accuracy in per cent by filters."""


def title_of(row: Row) -> str:
    """What the paper calls a network."""
    known = TITLES.get((row["arm"], row["pruned"]))
    if known is not None:
        return known
    whole = TITLES.get((row["arm"], None), str(row["arm"]))
    if row["pruned"] is None:
        return whole
    how = {"0": "fine-tuned whole", ONE: "one res."}.get(row["pruned"], f"thr {row['pruned']}")
    return f"{whole} ({how})"


def grouped(rows: list[Row]) -> dict[tuple[str, str | None], list[Row]]:
    """Return the rows by arm and pruning, in the paper's order."""
    order = list(TITLES)
    found: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        found.setdefault((row["arm"], row["pruned"]), []).append(row)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def networks_table(rows: list[Row], filters: int) -> str:
    """Accuracy and cost of every network beside the paper's, as a markdown table."""
    lines = [
        "| network | accuracy | before fine-tuning | million multiply-accumulates | share of the whole "
        f"| the paper's accuracy, {filters} filters | 64 filters | its share | processor seconds an epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    wholes = [row["macs"] for row in rows if row["arm"] in ("learned", "scale-invariant") and row["pruned"] is None]
    for _, same in grouped(rows).items():
        first, title = same[0], title_of(same[0])
        accuracy, cost = TABLE_1.get(title, (None, None))
        share = f"{first['macs'] / wholes[0]:.2f}" if wholes else ""
        own = accuracy if filters == 64 else TABLE_2.get(title, {}).get(filters)
        cells = [
            title,
            _percent([row["accuracy"] for row in same]),
            _percent([row["before"]["accuracy"] for row in same]) if "before" in first else "",
            f"{first['macs'] / 1e6:.2f}",
            share,
            *("" if value is None else f"{value:.1f}" for value in (own, accuracy)),
            "" if cost is None else f"{cost / 0.41:.2f}",
            f"{mean(row['epoch_processor_seconds'] for row in same):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"


def claims_table(rows: list[Row]) -> str:
    """What the paper claims, as a markdown table."""
    decided = decide_all(Results(rows))
    lines = [f"| {claim} | {figures} | {verdict} |" for claim, verdict, figures in decided]
    return "\n".join(["| the paper (points of accuracy) | here | |", "|---|---|---|", *lines])


def provenance(rows: list[Row]) -> str:
    """Where the numbers come from."""
    first = rows[0]
    schedule = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in first["schedule"].items())
    hours = sum(row["epochs"] * row["epoch_processor_seconds"] for row in rows) / 3600
    commands = "\n".join(f"    {command}" for command in commands_of(rows))
    return (
        f"{len(rows)} networks, data {first['data']} (tested on {first['test_images']} images), {days_of(rows)}, "
        f"seeds {sorted({row['seed'] for row in rows})}, on {machines_of(rows)}, "
        f"{hours:.1f} processor hours.\n\nSchedule: {schedule}. The mixing weights' rate is {_rate(first)}."
        f"\n\n{commands}"
    )


def _rate(row: Row) -> str:
    rate = row["schedule"]["mixing_lr"]
    return "the paper's" if rate == 1e-4 else f"{rate / 1e-4:g} times the paper's, whose schedule has far more steps"


def draw_structures(rows: list[Row], path: Path, title: str) -> bool:
    """Draw figure 3: predefined, learned, and what pruning left; False where nothing was learned."""
    shown: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {}
    for (arm, _), same in grouped(rows).items():
        if arm in ("predefined", "learned", DEPTH):
            shown[title_of(same[0])] = (np.array(same[0]["mixing"]), tuple(same[0]["outputs"]))
    if any(row["arm"].startswith("learned") for row in rows):
        save_structures_chart(shown, path, title)
        return True
    return False


def kinds_of(rows: list[Row]) -> dict[Kind, list[Row]]:
    """Return the rows of each kind of network, without those of the multigrid paper."""
    found: dict[Kind, list[Row]] = {}
    for row in rows:
        if row["arm"] not in DESIGNS:
            found.setdefault((row["filters"], row["layers"], row["block"], row["stride"]), []).append(row)
    return dict(sorted(found.items()))


def multigrid_table(rows: list[Row]) -> str:
    """Accuracy and cost of the multigrid paper's networks, as a markdown table."""
    lines = [
        "| network | width | accuracy | million parameters | million multiply-accumulates |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        lines.append(
            f"| {row['arm']} | {row['filters'] / 64:g} | {100 * row['accuracy']:.2f} | {row['parameters'] / 1e6:.2f} "
            f"| {row['macs'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def page(rows: list[Row], out: Path | None) -> str:
    """Return the report, and draw its figures beside ``out`` where there is one."""
    kinds = kinds_of(rows)
    return "\n\n".join(_parts(rows, kinds, out)) + "\n"


def _parts(rows: list[Row], kinds: dict[Kind, list[Row]], out: Path | None) -> Iterator[str]:
    yield "# Learned filter sizes on CIFAR"
    yield "Made by `python -m benchmarks.filters_report`; what the networks are stands in [encoders.md](encoders.md)."
    yield provenance(rows)
    yield (
        "The filters of all networks are trained on the first four fifths of the training images, the mixing weights "
        "on the last fifth. The ± of a difference is its standard error on the test images, image by image, or between "
        "seeds where there are several and that is larger; with one seed it knows nothing of what another seed would "
        "give. A difference below two of them is undecided. Pruning costs what the paper says, or nothing, where that "
        "is so to half a point. What is pruned is trained further, the whole network is not (but for `--prune 0`)."
    )
    for number, (kind, same) in enumerate(kinds.items()):
        filters, layers, block, stride = kind
        image_layer = "" if stride == 1 else f", image layer's stride {stride}"
        what = f"{filters} filters, {layers} layers, {block}{image_layer}"
        yield f"## {what}"
        yield networks_table(same, filters)
        yield claims_table(same)
        if out is not None:
            figure = out.with_name(f"{out.stem}{'' if number == 0 else f'-{number + 1}'}.png")
            if draw_structures(same, figure, f"Mixing weights of each layer's filters: {what}"):
                yield f"![Mixing weights by layer and resolution]({figure.name})"
    others = [row for row in rows if row["arm"] in DESIGNS]
    if others:
        yield "## Networks of the multigrid paper, by the same training"
        yield multigrid_table(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="write the page there, and its figure beside it (default: print)")
    asked = parser.parse_args()
    rows = read_results(asked.results)
    if not rows:
        parser.error(f"{asked.results}: holds no results; run `python -m benchmarks.learned_filters` first")
    try:
        text = page(rows, asked.out)
        if asked.out is None:
            print(text)
        else:
            with written_whole(asked.out) as beside:
                beside.write_text(text, encoding="utf-8")
    except PyrtravError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
