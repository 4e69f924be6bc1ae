"""The table of what encoders reached and cost, from the lines of the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.differences import paired
from benchmarks.encoders_arms import ARMS
from benchmarks.results import days_of, machines_of

Record = dict[str, Any]

DEFAULT = "residual"
"""The encoder that the others are compared with."""

ALIKE = ("epochs", "images", "lesson", "bfloat16", "seed", "fold")
"""What two runs must have in common to be compared."""

TITLES = {"samples": "The training samples", "mnist": "Digits on 128 px", "scenes": "Street scenes"}

HEAD = """# Encoders compared

`python -m benchmarks.encoders` trains `topdown` with one encoder after the other, alike but for the encoder, and
`--report` writes this page. The encoders have about as many parameters as the paper's first module for ImageNet, which
has no other size; whole models differ more, since the module that says where to look grows with the encoder's map.
`multigrid-tree` shares no cells between parents, as `multigrid-parent` may not: these two differ in
[what surrounds a cell](encoders.md#a-cell-in-its-parents-patch) alone. Cells are those that were looked at below the
glance of an image, of these two the paths to them. Of `multigrid` and `multires` those with `-batch` and `-patch`
normalise over a batch or a patch, the others, as by default, over the channels of each position. The filters and the
mixing weights of `multires` are trained together, on all data, and not on two parts in turn as in its paper.
Costs are of whole images; seconds are those of training, on a machine that did other work beside.

Learning rates are those at which the default encoder learns, and of some rows lower ones; differences are always from
the default encoder at its own rate, and with cells that are shared. Trainings are short, and of one seed unless there
are rows of several. Every run stands in [encoders_compared.jsonl](encoders_compared.jsonl): this page is made from it
where it is `results.jsonl` of `--out`.
"""


def markdown(records: Sequence[Record]) -> str:
    """Return the page; of data that nothing was measured on it says so."""
    parts = [HEAD]
    for data, title in TITLES.items():
        own = [record for record in records if record["data"] == data]
        parts.append(f"## {title}\n")
        parts.append("Not measured yet.\n" if not own else _table(own))
    return "\n".join(parts)


def _twin(row: Record, rows: Sequence[Record], arm: str) -> Record | None:
    """Return the run of another arm that was trained alike, if possible as fast, and looked at the same images."""
    twins = [r for r in rows if r["arm"] == arm and all(r[name] == row[name] for name in ALIKE)]
    return min(twins, key=lambda twin: abs(math.log(twin["lr"] / row["lr"])), default=None)


def _gaps(one: Record, other: Record) -> list[float]:
    """Return by how much one was right more often, image by image."""
    return [a / one["draws"] - b / other["draws"] for a, b in zip(one["right"], other["right"], strict=True)]


def _above(row: Record, rows: Sequence[Record]) -> str:
    """Return by how much a run is above that of the default encoder."""
    default = None if row["arm"] == DEFAULT else _twin(row, rows, DEFAULT)
    return "" if default is None else str(paired(np.array([_gaps(row, default)])))


def _context(rows: Sequence[Record]) -> list[str]:
    """Return what the parent's patch changes; a line for each way of training, over its seeds."""
    found: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in rows:
        tree = None if row["arm"] != "multigrid-parent" else _twin(row, rows, "multigrid-tree")
        if tree is not None and tree["lr"] == row["lr"]:
            found.setdefault((row["lr"], *(row[name] for name in ALIKE[:4])), []).append(_gaps(row, tree))
    lines = []
    for (_, epochs, *_), gaps in found.items():
        over = "images and seeds" if len(gaps) > 1 else "images"
        gap = paired(np.array(gaps))
        lines += ["", f"After {epochs} epochs the parent's patch brings {gap} (standard error over {over})."]
    return lines


def _statistics(rows: Sequence[Record]) -> list[str]:
    """Return what it costs that running statistics are of all depths."""
    found = [f"{row['name']} {row['by_batches']:.3f}" for row in rows if "by_batches" in row]
    if not found:
        return []
    return [
        "",
        "Accuracy by the statistics of what is encoded together, up to 256 patches of one depth, in place of "
        f"running ones: {', '.join(found)}.",
    ]


def _table(records: Sequence[Record]) -> str:
    order = {name: place for place, name in enumerate(ARMS)}
    rows = sorted(records, key=lambda r: (r["epochs"], r["images"], r["fold"], order[r["arm"]], -r["lr"], r["seed"]))
    lines = [
        f"| encoder | epochs | learning rate | seed | accuracy | above {DEFAULT} | cells | "
        "multiply-accumulates, millions | of a patch | parameters, thousands | of the encoder | seconds |",
        "|---" * 12 + "|",
    ]
    for r in rows:
        length = f"{r['epochs']}" + (f" of {r['images']:,}" if r["images"] else "")
        length += f" after a lesson of {r['lesson']}" if r["lesson"] else ""
        fold = f", fold {r['fold']}" if r["data"] == "scenes" else ""
        lines.append(
            f"| {r['arm']}{fold} | {length} | {r['lr']:g} | {r['seed']} | {r['accuracy']:.3f} | {_above(r, rows)} | "
            f"{r['cells']:.1f} | {r['macs'] / 1e6:.0f} | {r['patch_macs'] / 1e6:.1f} | {r['parameters'] / 1e3:.0f} | "
            f"{r['encoder_parameters'] / 1e3:.0f} | {r['seconds']:.0f} |"
        )
    looked = sorted({(len(r["right"]), r["draws"]) for r in rows})
    images = " or ".join(
        f"{count:,} images, {f'{draws} times' if draws > 1 else 'once'} each" for count, draws in looked
    )
    lines += [
        "",
        f"Accuracy is over {images}; differences are of the same images, with their standard error.",
        *_context(rows),
        *_statistics(rows),
        "",
        "Made by:",
        "",
    ]
    lines += [f"- {line}" for line in sorted({f"`{r['command']}`, {days_of([r])}, {machines_of([r])}" for r in rows})]
    return "\n".join([*lines, ""])
