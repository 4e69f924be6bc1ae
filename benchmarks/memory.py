"""Does memory stay flat over many files and reads?

    python -m benchmarks.memory --out runs/memory

Opens 100 slides at once and reads 100,000 random regions of them, one by one and several together, at all scales.
Resident memory is sampled on the way. Its peak may exceed the interpreter's own by the tile cache and 200 MiB, else
the exit code is 1. Prints a table and writes ``memory.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pyrtrav.files import make_folder, written_whole
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache

ALLOWED_BYTES = 200 << 20
PATCH = 128
TOGETHER = 16
SAMPLES = 20


@dataclass(frozen=True)
class Sample:
    regions: int
    seconds: float
    resident_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Measured:
    """Resident memory before anything was opened, at its peak, and on the way."""

    before_bytes: int
    peak_bytes: int
    samples: list[Sample]

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes

    @property
    def late_growth_bytes(self) -> int:
        """From the middle to the end: about none where nothing leaks and the cache is full."""
        return self.samples[-1].resident_bytes - self.samples[len(self.samples) // 2].resident_bytes


def memory_of(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def measure(paths: Sequence[Path], regions: int, seed: int = 0) -> Measured:
    """Open all files, read that many regions of them, and watch the memory."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = memory_of("VmRSS"), time.perf_counter()
    random = np.random.default_rng(seed)
    pyramids = [open_pyramid(path) for path in paths]
    samples: list[Sample] = []
    done = 0
    while done < regions:
        pyramid = pyramids[random.integers(len(pyramids))]
        count = int(random.choice([1, TOGETHER]))
        patches = pyramid.read_many([_any_region(pyramid, random) for _ in range(count)], PATCH)
        assert not any(patches.errors), patches.errors
        done += count
        if done >= regions * (len(samples) + 1) / SAMPLES:
            seconds = time.perf_counter() - start
            samples.append(Sample(done, round(seconds, 2), memory_of("VmRSS"), shared_cache().nbytes))
    for pyramid in pyramids:
        pyramid.close()
    return Measured(before, memory_of("VmHWM"), samples)


def _any_region(pyramid: Pyramid, random: np.random.Generator) -> Region:
    side = float(PATCH * 2 ** random.uniform(0, np.log2(pyramid.width / PATCH)))
    return Region(random.uniform(0, pyramid.width) - side / 2, random.uniform(0, pyramid.height) - side / 2, side, side)


def make_slides(folder: Path, count: int, side: int) -> list[Path]:
    """Write one slide, in a process of its own so that its memory is not counted, and copy it."""
    first = folder / f"{side}.svs"
    if not first.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.make_slide", str(side), str(first)], check=True)
    paths = [folder / f"{side}-{number:03}.svs" for number in range(count)]
    for path in paths:
        if not path.exists():
            with written_whole(path) as beside:
                shutil.copyfile(first, beside)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=6144, help="of each slide, in pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"))
    asked = parser.parse_args()
    paths = make_slides(make_folder(asked.out / "slides"), asked.files, asked.side)
    measured = measure(paths, asked.regions)

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(title=f"{asked.files} slides, {asked.regions:,} regions", title_justify="left")
    for heading in ("regions", "seconds", "resident, MiB", "above the start, MiB", "tile cache, MiB"):
        table.add_column(heading, justify="right")
    for sample in measured.samples:
        sizes = sample.resident_bytes, sample.resident_bytes - measured.before_bytes, sample.cache_bytes
        cells = [f"{sample.regions:,}", f"{sample.seconds:.1f}", *(f"{size / 2**20:.0f}" for size in sizes)]
        table.add_row(*cells)
    console.print(table)
    allowed = shared_cache().max_bytes + ALLOWED_BYTES
    kept = measured.growth_bytes <= allowed
    console.print(
        f"peak {measured.growth_bytes / 2**20:.0f} MiB above the start; "
        f"allowed are {allowed / 2**20:.0f} (cache {shared_cache().max_bytes / 2**20:.0f} + 200): "
        f"{'kept' if kept else 'NOT kept'}; {measured.late_growth_bytes / 2**20:+.1f} MiB over the second half"
    )
    with written_whole(asked.out / "memory.json") as path:
        path.write_text(json.dumps({**asdict(measured), "allowed_bytes": allowed, "kept": kept}, indent=1) + "\n")
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
