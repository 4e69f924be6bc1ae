"""How fast are slides read, beside the physical limit and other libraries?

    python -m benchmarks.reader --out runs/reader

The peers are optional, and better kept in an environment of their own:

    python3 -m venv bench && bench/bin/pip install -e . "pyvips[binary]>=3" "cucim-cu12>=25" "tiffslide>=3" \\
        "fastslide>=0.8" "slideio>=2.7" "large-image[tiff]>=1.30"

Writes its own slides (Aperio layout, JPEG 4:2:0, tiles of 256 px), then measures each reader at each work in a fresh
process, rounds interleaved and rotated, one process at a time, pinned to one core or two; shown are medians, and the
median over rounds of the ratio to the same round's limit. All windows lie in tissue, and the windows of a pass share
no tile, so that no cache helps anyone; the page cache is warm. Writes ``reader.json`` and ``reader.png``.

    aligned     windows of 256 px, each one stored tile
    unaligned   windows of 256 px, each over four stored tiles
    block       64 windows of 224 px, each overlapping its neighbours by half: 8 x 8, over about 25 tiles
    half        the block at downsample 2, which is not stored (levels are 1, 4, 16, 64)
    open        the file of 100,000 px, after a small one was opened
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.make_slide import write_slide
from benchmarks.peers import PEERS, is_installed
from benchmarks.reader_chart import draw_chart
from benchmarks.reader_child import HALF, OURS, Job
from benchmarks.reader_goals import check_goals, find
from benchmarks.reader_report import markdown
from pyrtrav.files import make_folder, written_whole

Result = dict[str, Any]
Key = tuple[str, str, int]
"""Reader, work, threads."""

TIMEOUT_SECONDS = 20
PACKAGES = (
    "pyrtrav", "simplejpeg", "numpy", "openslide-python", "openslide-bin", "cucim-cu12", "pyvips", "pyvips-binary",
    "tifffile", "imagecodecs", "zarr", "tiffslide", "fastslide", "large-image", "slideio",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    side: int
    open_side: int
    seconds: float
    rounds: int
    out: Path
    markdown: Path | None
    peers: tuple[str, ...]


def plan(peers: tuple[str, ...], cores: int) -> list[Key]:
    """Return what is measured in a round."""
    everyone = ("limit", *OURS, *peers)
    keys = [(reader, work, 1) for work in ("aligned", "unaligned", "block") for reader in everyone]
    if cores > 1:
        keys += [(reader, work, 2) for work in ("aligned", "unaligned") for reader in everyone]
        keys += [(reader, "block", 2) for reader in ("limit", *OURS)]
    keys += [(reader, "half", 1) for reader in ("limit", HALF, *OURS)]
    return keys + [(reader, "open", 1) for reader in ("pyrtrav read", *peers)]


def run_child(job: Job) -> Result:
    """Measure in a fresh process that has as many threads as the job says."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "VIPS_CONCURRENCY", "PYRTRAV_THREADS"):
        environment[name] = str(job.threads)
    if not job.reader.endswith(", cache"):
        environment["PYRTRAV_CACHE_BYTES"] = "0"
    command = [sys.executable, "-m", "benchmarks.reader_child", json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {TIMEOUT_SECONDS} s"}
    except (IndexError, ValueError):
        return {"error": f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    return result


def measure(asked: Asked, slide: Path, large: Path, console: Console) -> dict[Key, list[Result]]:
    """Run every job of every round; the order is rotated, so that none always follows the same."""
    cores = sorted(os.sched_getaffinity(0))
    keys = plan(asked.peers, len(cores))
    results: dict[Key, list[Result]] = {key: [] for key in keys}
    order = []
    for number in range(asked.rounds):
        shift = number * len(keys) // asked.rounds
        order += [(number, key) for key in keys[shift:] + keys[:shift]]
    for number, (reader, work, threads) in track(order, "measuring", console=console, disable=not console.is_terminal):
        path = str(large if work == "open" else slide)
        job = Job(reader, work, threads, asked.seconds, number, path, tuple(cores[-threads:]))
        results[reader, work, threads].append(run_child(job))
    return results


def measure_pairs(slide: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Measure our reader and the limit turn by turn in one process."""
    environment = dict(os.environ, PYRTRAV_CACHE_BYTES="0", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "benchmarks.reader_pairs", str(slide), str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summarise(results: dict[Key, list[Result]]) -> list[Result]:
    """Return a row per key: medians, and the median ratio to the limit of the same round."""
    rows = []
    for (reader, work, threads), runs in results.items():
        row: Result = {"reader": reader, "work": work, "threads": threads}
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            rows.append({**row, "error": errors[0]})
            continue
        for name in runs[0]:
            values = [run[name] for run in runs if run[name] is not None]
            row[name] = None if not values else max(values) if name == "difference" else median(values)
        row["runs"] = runs
        if work != "open":
            row["of_limit"] = _ratio(runs, results[("limit", work, threads)])
            row["of_limit_cpu"] = _ratio(runs, results[("limit", work, threads)], "cpu_rate")
            row["of_one_thread"] = _ratio(runs, results[(reader, work, 1)])
        rows.append(row)
    return rows


def _ratio(runs: list[Result], others: list[Result], name: str = "rate") -> float | None:
    pairs = [(a[name], b[name]) for a, b in zip(runs, others, strict=True) if name in b]
    return median(a / b for a, b in pairs) if pairs else None


def rate_table(rows: list[Result], work: str, title: str) -> Table:
    """Readers by windows a second, fastest first."""
    table = Table(title=title, title_justify="left")
    headings = "reader", "windows/s", "of the limit", "by CPU time", "2 threads", "of the limit", "gain", "difference"
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "reader" else "right")
    chosen = [row for row in rows if row["work"] == work and row["threads"] == 1]
    for row in sorted(chosen, key=lambda row: -row.get("rate", 0)):
        if "error" in row:
            table.add_row(row["reader"], row["error"].splitlines()[0][:60])
            continue
        two = find(rows, row["reader"], work, 2)
        cells = [f"{row['rate']:,.0f}", _two_places(row["of_limit"]), _two_places(row["of_limit_cpu"])]
        cells += [f"{two['rate']:,.0f}" if "rate" in two else "", *map(_two_places, (two.get("of_limit"),))]
        cells += [_two_places(two.get("of_one_thread")), "" if row["difference"] is None else str(row["difference"])]
        table.add_row(row["reader"], *cells)
    return table


def _two_places(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def open_table(rows: list[Result]) -> Table:
    table = Table(title="open: the large file, in a fresh process", title_justify="left")
    for heading in ("reader", "import and first file, ms", "open, ms", "memory, MiB", "first window, ms"):
        table.add_column(heading, justify="left" if heading == "reader" else "right")
    for row in sorted((row for row in rows if row["work"] == "open"), key=lambda row: row.get("open_ms", 1e9)):
        if "error" in row:
            table.add_row(row["reader"], row["error"].splitlines()[0][:60])
        else:
            names = "first_ms", "open_ms", "growth_mib", "window_ms"
            table.add_row(row["reader"], *(f"{row[name]:.1f}" for name in names))
    return table


def goal_table(goals: list[tuple[str, float | None, bool]]) -> Table:
    table = Table(title="goals", title_justify="left")
    for heading in ("read_many", "measured", "met"):
        table.add_column(heading)
    for name, number, met in goals:
        table.add_row(name, "not measured" if number is None else f"{number:.2f}", "yes" if met else "no")
    return table


def make_slides(asked: Asked) -> tuple[Path, Path]:
    """Write the slides, or take those that an earlier run wrote, and fill the page cache with the first."""
    folder = make_folder(asked.out / "slides")
    paths = [folder / f"{asked.side}.svs", folder / f"{asked.open_side}.svs", folder / "small.svs"]
    for path, side in zip(paths, (asked.side, asked.open_side, 4096), strict=True):
        if not path.exists():
            write_slide(path, side)
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return paths[0], paths[1]


def about() -> dict[str, str]:
    """Processor, system and versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    made = {"processor": processor, "cores": str(len(os.sched_getaffinity(0))), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            made[package] = version(package)
        except PackageNotFoundError:
            made[package] = "not installed"
    return made


def parse() -> Asked:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_000, help="of the slide, in pixels, from 8192 (default: 40000)")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each measurement (default: 0.4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/reader"))
    parser.add_argument("--only", nargs="*", choices=PEERS, help="these peers alone; none named: our own reader alone")
    parser.add_argument("--markdown", type=Path, help="write the page docs/reader.md there")
    parser.add_argument("--quick", action="store_true", help="small slides and one short round, to see that it runs")
    asked = parser.parse_args()
    if asked.quick:
        asked.side, asked.seconds, asked.rounds = min(asked.side, 16_384), 0.1, 1
    if asked.side < 8192:
        parser.error("--side: a slide below 8192 px has too few tiles to measure on")
    peers = tuple(PEERS if asked.only is None else asked.only)
    large = 16_384 if asked.quick else 100_000
    return Asked(asked.side, large, asked.seconds, asked.rounds, asked.out, asked.markdown, peers)


def main() -> None:
    asked = parse()
    console = Console(width=None if sys.stdout.isatty() else 120)
    begun = time.perf_counter()
    missing = {name: said for name in asked.peers if (said := is_installed(name)) is not None}
    for name, said in missing.items():
        console.print(f"{name}: not installed ({said})", highlight=False, markup=False)
    asked = Asked(**{**vars(asked), "peers": tuple(name for name in asked.peers if name not in missing)})
    slide, large = make_slides(asked)
    rows = summarise(measure(asked, slide, large, Console(stderr=True)))
    pairs = measure_pairs(slide, 10 * asked.seconds)
    goals = check_goals(rows, pairs)
    for work, title in (
        ("aligned", "aligned: windows of 256 px, one tile each"),
        ("unaligned", "unaligned: windows of 256 px, four tiles each"),
        ("block", "block: 64 half-overlapping windows of 224 px"),
        ("half", "half: the block at downsample 2, between stored levels"),
    ):
        console.print(rate_table(rows, work, title))
    console.print(open_table(rows), goal_table(goals))
    summary = {
        "about": about(),
        "side": asked.side,
        "open_side": asked.open_side,
        "seconds": asked.seconds,
        "rounds": asked.rounds,
        "not_installed": missing,
        "pairs": pairs,
        "goals": [{"goal": name, "measured": number, "met": met} for name, number, met in goals],
        "rows": rows,
    }
    with written_whole(asked.out / "reader.json") as path:
        path.write_text(json.dumps(summary, indent=1) + "\n")
    with written_whole(asked.out / "reader.png") as path:
        draw_chart(rows).save(path)
    if asked.markdown:
        with written_whole(asked.markdown) as path:
            path.write_text(markdown(summary))
    console.print(f"{asked.out / 'reader.json'} and reader.png, after {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
