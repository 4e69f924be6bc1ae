"""Should the JPEG decoder scale? What it saves, how far its pixels are off, and what it costs a traversal.

    python -m benchmarks.shrink SLIDE... --traversal LARGE.svs

``open_pyramid(shrink=True)`` lets the decoder halve tiles where a patch is at least that much coarser than the stored
level. For every slide and downsample between stored levels: the time of reading 64 half-overlapping windows of 224 px,
with and without, and how the pixels differ. Then a traversal of 64 fixations of the last slide, both ways.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pyrtrav.geometry import Region
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache

SIZE, STRIDE, SIDE = 224, 112, 8
DOWNSAMPLES = 2.0, 2.7, 3.49, 4.0, 5.5, 8.0


def blocks(pyramid: Pyramid, downsample: float, count: int) -> Iterator[list[Region]]:
    """Yield half-overlapping windows at random places."""
    random = np.random.default_rng(0)
    span = downsample * (STRIDE * (SIDE - 1) + SIZE)
    for _ in range(count):
        x = random.uniform(0, max(1, pyramid.width - span))
        y = random.uniform(0, max(1, pyramid.height - span))
        step, side = STRIDE * downsample, SIZE * downsample
        yield [Region(x + i * step, y + j * step, side, side) for j in range(SIDE) for i in range(SIDE)]


def compare(path: Path, downsample: float, count: int = 5) -> dict[str, float] | None:
    """Return the saving and the difference; None where a stored level is as coarse."""
    with open_pyramid(path) as exact, open_pyramid(path, shrink=True) as shrunk:
        if exact.level_for(Region(0, 0, downsample * SIZE, downsample * SIZE), (SIZE, SIZE)).index > 0:
            return None
        ratios, means, high, worst = [], [], [], 0
        for regions in blocks(exact, downsample, count + 1):
            read, seconds = [], []
            for pyramid in (exact, shrunk):
                shared_cache().clear()
                begun = time.perf_counter()
                read.append(pyramid.read_many(regions, SIZE).pixels.astype(int))
                seconds.append(time.perf_counter() - begun)
            inside = [r.x >= 0 and r.y >= 0 and r.right <= exact.width and r.bottom <= exact.height for r in regions]
            off = np.abs(read[0] - read[1])[inside]
            if off.size and read[0][inside].std() > 8:  # glass says nothing
                means.append(off.mean())
                high.append(np.percentile(off, 99))
                worst = max(worst, int(off.max()))
            ratios.append(seconds[1] / seconds[0])
        if not means:
            return None
        return {"time": median(ratios[1:]), "mean": float(np.mean(means)), "p99": float(np.mean(high)), "max": worst}


def traverse(path: Path, shrink: bool, rounds: int = 7) -> dict[str, Any]:
    """Return what a traversal of 64 fixations costs, from an empty cache."""
    predictor = Predictor(device="cpu")
    settings, seconds = predictor.settings(budget=64, depth=20), []
    card = predictor.card
    for _ in range(rounds):
        shared_cache().clear()
        with open_pyramid(path, channels=card.chosen or card.channels, shrink=shrink) as pyramid:
            begun = time.perf_counter()
            predictor.model.look([pyramid], settings, None)
            seconds.append(time.perf_counter() - begun)
            cost = pyramid.cost
    return {"ms": median(seconds[1:]) * 1e3, "decoded": cost.tiles_decoded, "distinct": cost.tiles_distinct}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a decoder that scales saves, and what it changes.")
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--traversal", type=Path)
    asked = parser.parse_args()
    console = Console()
    table = Table("slide", "downsample", "time", "mean difference", "99 %", "largest", title="shrunk beside exact")
    for slide in asked.slides:
        for downsample in DOWNSAMPLES:
            found = compare(slide, downsample)
            if found:
                values = f"{found['time']:.2f}", f"{found['mean']:.2f}", f"{found['p99']:.0f}", f"{found['max']}"
                table.add_row(slide.name, f"{downsample:g}", *values)
    console.print(table)
    if asked.traversal:
        table = Table("", "ms", "tiles decoded", "of these distinct", title="a traversal of 64 fixations")
        for name, shrink in (("exact", False), ("shrunk", True)):
            row = traverse(asked.traversal, shrink)
            table.add_row(name, f"{row['ms']:.0f}", f"{row['decoded']}", f"{row['distinct']}")
        console.print(table)


if __name__ == "__main__":
    main()
