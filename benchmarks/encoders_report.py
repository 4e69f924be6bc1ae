"""The table of what encoders reached and cost, from the lines of the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.differences import paired
from benchmarks.encoders_arms import ARMS
from benchmarks.results import days_of, machines_of

Record = dict[str, Any]

TITLES = {"samples": "The training samples", "mnist": "Digits on 128 px", "scenes": "Street scenes"}

HEAD = """# Encoders compared

`python -m benchmarks.encoders` trains `topdown` with one encoder after the other, alike but for the encoder, and
`--report` writes this page. The encoders have about as many parameters as the paper's first module for ImageNet, which
has no other size; whole models differ more, since the module that says where to look grows with the encoder's map.
`multigrid-tree` shares no cells between parents, as `multigrid-parent` may not: these two differ in
[what surrounds a cell](encoders.md#a-cell-in-its-parents-patch) alone. Cells are those that were looked at below the
glance of an image, of these two the paths to them; costs are of whole images; seconds are those of training, on a
machine that did other work beside.
"""


def markdown(records: Sequence[Record]) -> str:
    """Return the page; of data that nothing was measured on it says so."""
    parts = [HEAD]
    for data, title in TITLES.items():
        own = [record for record in records if record["data"] == data]
        parts.append(f"## {title}\n")
        parts.append("Not measured yet.\n" if not own else _table(own))
    return "\n".join(parts)


def _context(rows: Sequence[Record]) -> list[str]:
    """What the parent's patch changes, image by image; a line for each length and precision of training."""
    runs: dict[tuple[Any, ...], dict[str, dict[int, Record]]] = {}
    for row in rows:
        alike = row["epochs"], row["images"], row["bfloat16"]
        runs.setdefault(alike, {}).setdefault(row["arm"], {})[row["seed"]] = row
    lines = []
    for (epochs, *_), arms in runs.items():
        tree, parent = arms.get("multigrid-tree", {}), arms.get("multigrid-parent", {})
        pairs = [(parent[seed], tree[seed]) for seed in parent if seed in tree]
        if pairs:
            found = paired(np.stack([(np.array(a["right"]) - b["right"]) / a["draws"] for a, b in pairs]))
            over = "images and seeds" if len(pairs) > 1 else "images"
            lines += ["", f"After {epochs} epochs the parent's patch brings {found} (standard error over {over})."]
    return lines


def _table(records: Sequence[Record]) -> str:
    order = {name: place for place, name in enumerate(ARMS)}
    rows = sorted(records, key=lambda r: (r["epochs"], r["images"], r["fold"], order[r["arm"]], r["seed"]))
    lines = [
        "| encoder | epochs | seed | accuracy | cells | multiply-accumulates, millions | of a patch | "
        "parameters, thousands | of the encoder | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        length = f"{r['epochs']}" + (f" of {r['images']:,}" if r["images"] else "")
        fold = f", fold {r['fold']}" if r["data"] == "scenes" else ""
        lines.append(
            f"| {r['arm']}{fold} | {length} | {r['seed']} | {r['accuracy']:.3f} | {r['cells']:.1f} | "
            f"{r['macs'] / 1e6:.0f} | {r['patch_macs'] / 1e6:.1f} | {r['parameters'] / 1e3:.0f} | "
            f"{r['encoder_parameters'] / 1e3:.0f} | {r['seconds']:.0f} |"
        )
    looked = sorted({(len(r["right"]), r["draws"]) for r in rows})
    images = " or ".join(f"{count:,} images, {draws} times each" for count, draws in looked)
    lines += ["", f"Accuracy is over {images}.", *_context(rows), "", "Made by:", ""]
    lines += [f"- {line}" for line in sorted({f"`{r['command']}`, {days_of([r])}, {machines_of([r])}" for r in rows})]
    return "\n".join([*lines, ""])
