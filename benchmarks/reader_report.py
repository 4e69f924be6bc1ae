"""The readers' speeds as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORKS = {
    "aligned": "Aligned windows of 256 px: one stored tile each",
    "unaligned": "Unaligned windows of 256 px: four stored tiles each",
    "block": "A block: 64 windows of 224 px, each overlapping its neighbours by half",
    "half": "The block at downsample 2, between the stored levels 1 and 4",
}

INTRO = """# How fast slides are read

Measured by `python -m benchmarks.reader`, which writes its slides itself and this page too (`--markdown`).

**The limit** is the least that must be done for a JPEG tile: one positioned read of its exact bytes, one strict decode
by libjpeg-turbo (simplejpeg) into a buffer that is used again, one copy of the wanted part. No cache, no checks, no
other formats. For a block it decodes each distinct tile once. Speeds are given in windows a second and in parts of the
limit's.

The slide has {side:,} x {side:,} px in Aperio's layout: tiles of 256 px, JPEG 4:2:0 at quality 75, about 10 kB each in
tissue. Windows lie in tissue, and those of one pass share no tile, so that no cache helps anyone; the page cache is
warm. Each reader is measured at each work in a fresh process of {seconds:g} s, one process at a time, pinned to one
core (or two); rounds, their order rotated: {rounds}. Shown are medians; ratios are medians of each round's ratio.
"By CPU time" is the same ratio in windows per second of the processor's time, which is less disturbed by whatever else
runs. The last column is the largest difference of any pixel from the limit's.

The first five goals are measured apart, turn by turn in one process (`benchmarks/reader_pairs.py`): the limit and
`read_many`, on one thread and on two, each time 64 other windows of the same kind; medians of the ratios.

`read` asks for one window at a time, `read_many` for 64; both without a cache of decoded tiles except where it says
*cache* (our default, 256 MiB). Peers have their defaults, and read one window at a time, as their users do.
"""


def markdown(summary: dict[str, Any]) -> str:
    """Return the page for what ``reader.json`` holds."""
    rows: list[dict[str, Any]] = summary["rows"]
    about: dict[str, str] = summary["about"]
    parts = [INTRO.format(**summary), "## Goals\n"]
    goals = [(g["goal"], _number(g["measured"]), "yes" if g["met"] else "**no**") for g in summary["goals"]]
    parts.append(table(("`read_many`", "measured", "met"), goals))
    headings = "reader", "windows/s", "of the limit", "by CPU time", "two threads", "of the limit", "gain", "difference"
    for work, title in WORKS.items():
        parts += [f"\n## {title}\n", table(headings, _rates(rows, work))]
    parts += [f"\n## Opening {summary['open_side']:,} x {summary['open_side']:,} px\n", _opening(rows)]
    parts.append("\nIn a fresh process, after a small file of the same kind was opened; memory is the peak's growth.")
    versions = ", ".join(f"{name} {value}" for name, value in about.items() if value != "not installed")
    parts.append(f"\n## Where\n\n{versions}.")
    missing = [name for name, value in about.items() if value == "not installed"]
    if missing:
        parts.append(f"Not installed: {', '.join(missing)}.")
    return "\n".join(parts) + "\n"


def _rates(rows: list[dict[str, Any]], work: str) -> list[tuple[str, ...]]:
    found = {(row["reader"], row["threads"]): row for row in rows if row["work"] == work and "rate" in row}
    cells: list[tuple[str, ...]] = []
    for (reader, threads), row in sorted(found.items(), key=lambda item: -item[1]["rate"]):
        if threads != 1:
            continue
        two = found.get((reader, 2), {})
        cells.append(
            (
                reader,
                f"{row['rate']:,.0f}",
                _number(row["of_limit"]),
                _number(row["of_limit_cpu"]),
                f"{two['rate']:,.0f}" if two else "",
                _number(two.get("of_limit")),
                _number(two.get("of_one_thread")),
                "" if row["difference"] is None else str(row["difference"]),
            )
        )
    failed = [row for row in rows if row["work"] == work and "error" in row]
    return cells + [(f"{row['reader']}, {row['threads']} thr.", f"failed: {row['error'][:60]}") for row in failed]


def _opening(rows: list[dict[str, Any]]) -> str:
    names = "open_ms", "growth_mib", "window_ms", "first_ms"
    found = sorted((row for row in rows if "open_ms" in row), key=lambda row: row["open_ms"])
    headings = "reader", "open, ms", "memory, MiB", "first window, ms", "import and first file, ms"
    return table(headings, [(row["reader"], *(f"{row[name]:.1f}" for name in names)) for row in found])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table; short rows are filled up."""
    full = [(*row, *("",) * (len(headings) - len(row))) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, ("---",) * len(headings), *full))
