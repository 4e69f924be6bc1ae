"""What becomes of damaged files, as a page: ours beside what other libraries do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.reader_report import table

VERSIONS = "OpenSlide 4.0.1, tifffile 2026.3.3, libvips 8.18.7, cuCIM 26.10, fastslide 0.8.1"
OTHERS = "OpenSlide", "tifffile", "libvips", "cuCIM", "fastslide"

STICKS, SILENT, HANGS = "error, and for every later read", "**half grey, silently**", "**hangs**"

TILES: dict[str, tuple[str, ...]] = {
    "tile_random.svs": (STICKS, "error", "error", "**stale pixels, silently**", HANGS),
    "tile_zeros.svs": (STICKS, "error", "error", "**stale pixels, silently**", HANGS),
    "tile_entropy.svs": (STICKS, f"error or {SILENT}", SILENT, SILENT, HANGS),
    "tile_halfcount.svs": (STICKS, SILENT, SILENT, SILENT, SILENT),
    "tile_off_eof.svs": (STICKS, "error", "error", "error", "**white, silently**"),
    "tile_cnt_huge.svs": (STICKS, "reads on, right", "right", "error", "right"),
    "tile_missing.svs": ("transparent", "black", "error", "white", "white or error"),
    "tile_jpg128.svs": (STICKS, "error", "**garbage**", "**garbage**", "**segmentation fault**"),
    "tile_jpg512.svs": (STICKS, "error", "error", "**segmentation fault**", "right"),
    "tile_jpgbomb.svs": (STICKS, "**12 GB, then an error**", "error", "**segmentation fault**", "white"),
    "tile_gray.svs": (STICKS, "gray as RGB", "error", "**stale pixels, silently**", "white"),
    "tile_cmyk.svs": (STICKS, "error", "error", "**stale pixels, silently**", HANGS),
    "tile_progressive.svs": ("right",) * 5,
    "tile_12bit.svs": ("right",) * 5,
}
"""What the libraries of OTHERS make of one damaged tile."""

FILES: dict[str, tuple[str, ...]] = {
    "trunc50.svs": ("refused", "**levels missing, silently**", "as tifffile", "**levels missing**", "-"),
    "trunc90.svs": ("refused", "**level half grey, silently**", "as tifffile", "levels missing", "-"),
    "trunc50_vips.tif": ("refused", "IndexError", "error", "error", "-"),
    "magic_only.tif": ("refused", "IndexError", "error", "error", "-"),
    "ifd_loop.svs": ("refused", "opens what there is", "opens what there is", "opens what there is", "-"),
    "desc_huge.svs": ("**one level, silently**", "right", "right", "error", "-"),
    "tiles_count_huge.svs": ("right", "IndexError", "right", "error", "-"),
    "dim_huge.svs": ("error", "right where there are tiles", "error", "error", "-"),
    "tile_huge.svs": ("**aborts the process**", "MemoryError", "error", "error", "-"),
    "tile_zero.svs": ("error", "ZeroDivisionError", "error", "error", "-"),
    "deflate_bomb.tif": ("reads what it needs", "error", "right", "error", "**4.2 GB, 17 s**"),
    "bomb.png": ("-", "-", "**over 25 s, gigabytes of temporary disk**", "-", "-"),
    "fifo.svs": (HANGS,) * 5,
    "noperm.svs": ("misleading error", "PermissionError", "error", "error", "**opens without levels**"),
    "svs_named.png": ("right", "right", "right", "refused", "refused"),
    "aperio_latin.svs": ("right", "right", "right", "**cannot open it**", "-"),
    "zero.svs": ("refused", "error", "error", "error", "**opens without levels**"),
}
"""And of a whole file; - is not known."""

INTRO = """# Damaged and odd files

What is read from files that are damaged, odd, or no images at all. The rule: **right pixels, or an error that names
the file, and the tile where it is one tile, while its neighbours are still read.** No wrong pixels without a word, no
crash, nothing over 10 s or 2 GiB.

Each file was opened and read, window by window at every level, in a process of its own, and compared with the
undamaged original where there is one, else with OpenSlide, tifffile or Pillow. This page is written by

    python -m benchmarks.damaged FOLDER... --markdown docs/damaged.md

The other libraries' columns were measured once, in child processes too ({versions}).
"""


class Found(Protocol):
    """What the page says of a file."""

    path: Path
    what: str
    detail: str


def markdown(findings: Sequence[Found], described: dict[str, str]) -> str:
    """Return the page. ``described`` says by file name what is the matter; other files are only counted."""
    by_name = {finding.path.name: finding for finding in findings}
    odd = [finding for finding in findings if finding.path.name in described]
    others = [finding for finding in findings if finding.path.name not in described]
    parts = [INTRO.format(versions=VERSIONS), "## In short\n", _counted("damaged and odd files", odd)]
    if others:
        parts.append(_counted("ordinary files (slides, photographs, scenes, and files beside them)", others))
    for title, cases in (("One damaged tile", TILES), ("The whole file", FILES)):
        rows = [
            (described[name], _ours(by_name[name]), *said)
            for name, said in cases.items()
            if name in by_name and name in described
        ]
        if rows:
            parts += [f"\n## {title}\n", table(("damage", "pyrtrav", *OTHERS), rows)]
    if odd:
        rows = [(finding.path.name, described[finding.path.name], _ours(finding)) for finding in odd]
        parts += ["\n## Every damaged and odd file\n", table(("file", "what it is", "what is read"), rows)]
    notable = [finding for finding in others if finding.what != "right"]
    if notable:
        rows = [(finding.path.name, _ours(finding)) for finding in notable]
        parts += ["\n## Ordinary files that are not simply right\n", table(("file", "what is read"), rows)]
    return "\n".join(parts) + "\n"


def _counted(title: str, findings: Sequence[Found]) -> str:
    counts = Counter(finding.what for finding in findings)
    words = {
        "right": "right pixels",
        "refused": "refused with an error that names the file",
        "part": "an error for the damaged tile, right pixels around it",
        "not compared": "read, with nothing to compare with",
    }
    said = ", ".join(f"{count} {words.get(what, f'**{what}**')}" for what, count in counts.most_common())
    return f"- {len(findings)} {title}: {said}."


def _ours(finding: Found) -> str:
    if finding.what == "right":
        said = "right"
        if counted := re.match(r"(\d+) windows, (\d+) compared", finding.detail):
            total, compared = counted.groups()
            said += "" if total == compared else f" ({compared} of {total} windows could be compared)"
        return said + ("; what is empty is background, marked" if "declared empty" in finding.detail else "")
    if finding.what == "not compared":
        return "read"
    # Without the counts, the file's name and the kinds of error.
    reason = re.sub(r"^\d+ of .*?; ", "", " ".join(finding.detail.split()))
    reason = re.sub(r"\b[A-Za-z]+Error: ", "", reason).replace(f"{finding.path.name}: ", "")
    name = {"part": "error for this tile alone", "refused": "refused"}.get(finding.what, f"**{finding.what}**")
    return f"{name}: {reason}".replace("|", "\\|")
