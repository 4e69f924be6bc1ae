"""What becomes of damaged, odd and ordinary files? Each is read in a process of its own, with limits.

    python -m benchmarks.damaged FOLDER [FOLDER...] --markdown docs/damaged.md

Every file of the folders is opened and read, window by window, and compared with the undamaged original where there
is one, else with what OpenSlide, tifffile or Pillow read. Limits: 10 s and 2 GiB. Prints each file that is not as it
should be, exits with 1 if there is one, and writes the table. A folder may hold a ``manifest.json`` that says by file
name what is the matter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.damaged_child import MEMORY_BYTES, Outcome, Pixels, Read, read_file, read_others
from benchmarks.damaged_report import markdown
from pyrtrav.files import written_whole

TIMEOUT_SECONDS = 10

ORIGINALS = (
    ("ok.*", None),
    ("trunc*_vips.tif", "vips.tif"),
    ("tile_12bit.svs", None),
    ("tile_missing.tif", "ok.tif"),
    ("tile_random.tif", "ok.tif"),
    ("trunc*.svs", "ok.svs"),
    ("tile_*.svs", "ok.svs"),
    ("tiles_*.svs", "ok.svs"),
    ("ifd_*.svs", "ok.svs"),
    ("desc_huge.svs", "ok.svs"),
    ("dim_*.svs", "ok.svs"),
    ("only_level0.svs", "ok.svs"),
    ("no_thumb.svs", "ok.svs"),
    ("svs_*", "ok.svs"),
    ("j_ycc_as_rgb*", "j_ycc420.tif"),
    ("j_rgb_as_ycc.tif", "j_rgb.tif"),
    ("c_lzw*.tif", "c_none.tif"),
    ("c_[dplz]*.tif", "c_none.tif"),
)
"""Which undamaged file has the right pixels, by the name of the damaged one."""

DEAD = "crash", "hang", "memory"
GOOD = "right", "refused", "part", "not compared"
"""refused: an error naming the file; part: an error naming the tile, the other tiles right."""


@dataclass
class Finding:
    """One file's outcome; ``what`` is of GOOD, or wrong, unclear error, or of DEAD."""

    path: Path
    what: str
    detail: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    levels: str = ""
    mpp: float | None = None
    read_by: tuple[str, ...] = ()
    """Other libraries that give any pixels of the file, right or not."""


def in_child(work: Callable[..., Any], *arguments: Any, seconds: float = TIMEOUT_SECONDS) -> tuple[str, Any]:
    """Run in a forked process: ("ok", its result), or how it died and a word on that."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        theirs.send(work(*arguments))

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return "hang", f"no answer in {seconds:g} s"
        return "ok", ours.recv()
    except EOFError:
        process.join()
        return "crash", f"exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        ours.close()


def judge(path: Path) -> Finding:
    """Read the file in a child, others in another, and compare."""
    state, outcome = in_child(read_file, path)
    if state != "ok":
        return Finding(path, state, outcome)
    original = original_of(path)
    itself = pixels_of_others(path, outcome)
    truths = pixels_of_others(original, outcome) if original else itself
    if original and "OpenSlide" in itself:
        # It raises on damage, so what it reads is right too: of a tile that was replaced, the replacement.
        truths = {**truths, "OpenSlide on the file itself": itself["OpenSlide"]}
    what, detail = compare(outcome, truths)
    levels = " ".join(f"{width}x{height}" for width, height in outcome.levels)
    peak = outcome.peak_bytes / 2**20
    return Finding(path, what, detail, outcome.seconds, peak, levels, outcome.mpp, tuple(itself))


def pixels_of_others(path: Path, outcome: Outcome) -> dict[str, list[Pixels | None]]:
    """Return what other libraries read there; nothing where one of them dies, which is not our doing."""
    if not path.is_file():
        return {}  # they would wait for a pipe
    state, found = in_child(read_others, path, outcome)
    return found if state == "ok" else {}


def original_of(path: Path) -> Path | None:
    for pattern, original in ORIGINALS:
        if fnmatch(path.name, pattern):
            return path.with_name(original) if original and path.with_name(original).exists() else None
    return None


def compare(outcome: Outcome, others: dict[str, list[Pixels | None]]) -> tuple[str, str]:
    """Return what it is, and a line on it; pixels are right if they are what any of the others reads."""
    if outcome.peak_bytes > MEMORY_BYTES:
        return "memory", f"{outcome.peak_bytes >> 20} MiB"
    if "MemoryError" in (outcome.error or "") or any("MemoryError" in (read.error or "") for read in outcome.reads):
        return "memory", outcome.error or "MemoryError in a tile"
    if outcome.unplanned:
        said = outcome.error or next(read.error for read in outcome.reads if read.error)
        return "unclear error", str(said)
    if outcome.error is not None:
        return "refused", outcome.error
    failed = [read for read in outcome.reads if read.error]
    unnamed = [read for read in failed if read.tile is None]
    if unnamed:
        return "unclear error", str(unnamed[0].error)
    wrong, compared, empty, rounded = [], 0, 0, 0
    for number, read in enumerate(outcome.reads):
        if read.pixels is None:
            continue
        empty += read.valid is not None and not read.valid.all()
        truths = [found[number] for found in others.values()]
        differences = [difference(read, truth) for truth in truths if truth is not None]
        compared += bool(differences)
        rounded += bool(differences) and min(differences) == 1
        if differences and min(differences) > 1:
            wrong.append((min(differences), read.window))
    said = f"{len(outcome.reads)} windows, {compared} compared"
    if empty:
        said += f", {empty} with pixels that are declared empty"
    if rounded:
        said += f", {rounded} off by 1 at most"
    if wrong:
        worst = max(wrong, key=lambda item: item[0])
        return "wrong", f"{len(wrong)} windows differ, by at most {worst[0]}, at {worst[1]}; {said}"
    if failed:
        said = f"{len(failed)} of {said}; {failed[0].error}"
        return ("part" if len(failed) < len(outcome.reads) or len(failed) == 1 else "refused"), said
    return ("right" if compared else "not compared"), said


def difference(read: Read, truth: Pixels) -> int:
    """Return the largest difference of a pixel that is stored image."""
    assert read.pixels is not None
    if read.pixels.shape != truth.shape:
        return 256
    differences = np.abs(read.pixels.astype(int) - truth).max(2)
    return int(differences[read.valid].max(initial=0)) if read.valid is not None else int(differences.max())


def files_of(folder: Path) -> Iterator[Path]:
    """Yield everything in the folder; a zarr folder, and one that only looks like a file, is one thing."""
    for path in sorted(folder.iterdir()):
        is_image = path.suffix in (".zarr", ".svs")
        if path.is_dir() and not path.is_symlink() and not is_image:
            yield from files_of(path)
        elif path.name != "manifest.json":
            yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write all findings there")
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    paths = [path for folder in asked.folders for path in files_of(folder)]
    stderr = Console(stderr=True)
    findings = [judge(path) for path in track(paths, console=stderr, disable=not stderr.is_terminal)]
    described: dict[str, str] = {}
    for manifest in (folder / "manifest.json" for folder in asked.folders):
        described |= json.loads(manifest.read_text()) if manifest.exists() else {}
    table = Table(title="not as it should be", title_justify="left")
    for heading in ("file", "what", "detail", "read by"):
        table.add_column(heading, overflow="fold")
    bad = [finding for finding in findings if finding.what not in GOOD]
    for finding in bad:
        table.add_row(finding.path.name, finding.what, finding.detail, ", ".join(finding.read_by))
    console.print(table)
    counts = Counter(finding.what for finding in findings)
    slowest = max(findings, key=lambda finding: finding.seconds)
    largest = max(findings, key=lambda finding: finding.peak_mib)
    console.print(f"{len(findings)} files: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    console.print(f"slowest {slowest.path.name} {slowest.seconds:.1f} s, largest {largest.path.name} ", end="")
    console.print(f"{largest.peak_mib:.0f} MiB")
    if asked.json:
        rows = [{**vars(finding), "path": str(finding.path)} for finding in findings]
        with written_whole(asked.json) as path:
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    if asked.markdown:
        with written_whole(asked.markdown) as path:
            path.write_text(markdown(findings, described))
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
