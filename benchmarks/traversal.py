"""What does a whole traversal cost beside decoding its tiles and encoding its patches, each alone?

    python -m benchmarks.traversal --out runs/traversal [--side 100000] [--threads 2] [--base 224]

Writes a slide (see ``make_slide``) and looks at it 64 times with the shipped model (patches of 64 px), or with an
untrained one of larger patches, at the default cache, from an empty one. Then, in the same run: the same tiles, each
read and decoded once, and the same patches, encoded in one batch. Rounds are interleaved; shown are medians. With
``strace`` installed the kernel counts the bytes that a traversal reads from the slide by position; they must be those
of its tiles.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.make_slide import write_slide
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.batch import box_of, tile_range

FIXATIONS = 64
GOAL = 1.25


def count_bytes(slide: Path, base: int | None) -> tuple[int, int]:
    """Return the bytes read by position in a traversal, as the kernel counts them and as the ledger does."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "benchmarks.traversal", "--look", str(slide)]
        command += ["--base", str(base)] if base else []
        traced = ["strace", "-f", "-P", str(slide.resolve()), "-e", "trace=pread64", "-o", str(log), *command]
        said = subprocess.run(traced, check=True, capture_output=True, text=True).stdout
        calls = re.findall(r"pread64\(\d+.*\) = (\d+)", log.read_text())
        finished = re.findall(r"pread64 resumed>.*\) = (\d+)", log.read_text())
    return sum(map(int, calls + finished)), int(json.loads(said)["bytes_read"])


class Bench:
    """One slide and the shipped model."""

    def __init__(self, slide: Path, threads: int, base: int | None) -> None:
        os.environ["PYRTRAV_THREADS"] = str(threads)
        import torch

        from pyrtrav.encoders import build_encoder
        from pyrtrav.methods.topdown import TopDown, TopDownConfig
        from pyrtrav.predict import Predictor

        torch.set_num_threads(threads)
        self.torch, self.threads, self.slide = torch, threads, slide
        predictor = Predictor(device="cpu")
        self.settings = predictor.settings(budget=FIXATIONS, depth=20)
        self.model: Any = predictor.model
        if base is not None:
            torch.manual_seed(0)
            encoder = build_encoder("residual", channels=3, base_resolution=base)
            self.model = TopDown(TopDownConfig(), encoder, 2).eval()
        self.base = int(self.model.encoder.base_resolution)

    def open(self) -> Pyramid:
        return open_pyramid(self.slide, channels=3)

    def look(self) -> dict[str, Any]:
        """Open the slide and traverse it, with nothing in the cache."""
        shared_cache().clear()
        begun = time.perf_counter()
        with self.open() as pyramid, self.torch.inference_mode():
            opened = time.perf_counter()
            trace = self.model.look([pyramid], self.settings, None)
            ended = time.perf_counter()
            return {
                "open": opened - begun,
                "look": ended - opened,
                "fixations": len(trace.image),
                "depth": int(trace.depth.max()),
                "regions": trace.region.tolist(),
                "bytes_read": pyramid.cost.bytes_read,
                "tiles_decoded": pyramid.cost.tiles_decoded,
                "tiles_distinct": pyramid.cost.tiles_distinct,
                "tiles_total": pyramid.tiles_total,
            }

    def tile_decoder(self, regions: list[list[float]]) -> Callable[[], None]:
        """Return what reads and decodes the tiles under the regions once, in file order, on all threads."""
        import numpy as np
        import simplejpeg
        import tifffile

        base = self.base
        wanted = set()
        with self.open() as pyramid:
            for row in regions:
                region = Region(*row)
                level = pyramid.level_for(region, (base, base))
                box = box_of(region, (base, base), level, (pyramid.width, pyramid.height))
                left, top, right, bottom = box.extent(base, base)
                for r in tile_range(top, bottom, level.tile_height, level.height):
                    for c in tile_range(left, right, level.tile_width, level.width):
                        wanted.add((level.index, r, c))
        with tifffile.TiffFile(self.slide) as tif:
            every: list[Any] = list(tif.pages)
            pages = [page for page in every if page.is_tiled]
            head = pages[0].jpegtables[:-2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
            tiles = []
            for number, r, c in sorted(wanted):
                page = pages[number]
                index = r * -(-page.imagewidth // page.tilewidth) + c
                tiles.append((page.dataoffsets[index], page.databytecounts[index]))
        file = os.open(self.slide, os.O_RDONLY)

        def share(some: list[tuple[int, int]]) -> None:
            slab = np.zeros((256, 256, 3), np.uint8)
            for offset, count in some:
                simplejpeg.decode_jpeg(head + os.pread(file, count, offset)[2:], buffer=slab)

        def decode() -> None:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(share, [tiles[i :: self.threads] for i in range(self.threads)]))

        decode.__doc__ = f"{len(tiles)} tiles"
        return decode

    def patch_encoder(self, regions: list[list[float]]) -> Callable[[], None]:
        """Return what encodes the patches of the regions in one batch."""

        encoder = self.model.encoder
        with self.open() as pyramid:
            read = pyramid.read_many([Region(*row) for row in regions], self.base)
        patches = self.torch.from_numpy(read.pixels).permute(0, 3, 1, 2)

        def encode() -> None:
            with self.torch.inference_mode():
                encoder(patches.float().div_(255))

        return encode


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return medians over rounds, after one that is not counted."""
    first = bench.look()
    decode, encode = bench.tile_decoder(first["regions"]), bench.patch_encoder(first["regions"])
    runs = []
    for _ in range(rounds + 1):
        looked = bench.look()
        alone = {"decode": seconds(decode), "encode": seconds(encode)}
        runs.append({**looked, **alone, "ratio": looked["look"] / sum(alone.values())})
    row = {name: median(run[name] for run in runs[1:]) for name in ("open", "look", "decode", "encode", "ratio")}
    facts = ("fixations", "depth", "bytes_read", "tiles_decoded", "tiles_distinct", "tiles_total")
    return {"threads": bench.threads, **row, **{name: first[name] for name in facts}, "goal": GOAL}


def show(row: dict[str, Any], console: Console) -> None:
    table = Table("", f"{row['threads']} thread(s)", title=f"A traversal of {row['fixations']} fixations")
    for name in ("open", "look", "decode", "encode"):
        table.add_row(f"{name}{' alone' if name in ('decode', 'encode') else ''}, ms", f"{row[name] * 1e3:.1f}")
    table.add_row("look / (decode + encode)", f"{row['ratio']:.2f} (goal {GOAL})")
    for name in ("depth", "tiles_decoded", "tiles_distinct", "tiles_total", "bytes_read"):
        table.add_row(name.replace("_", " "), f"{row[name]:,}")
    if "bytes_by_kernel" in row:
        table.add_row("bytes read by position, as the kernel counts", f"{row['bytes_by_kernel']:,}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/traversal"))
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--base", type=int, help="side of an untrained model's patches, instead of the shipped one's")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.look:
        said = Bench(asked.look, asked.threads, asked.base).look()
        print(json.dumps(said))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    slide = asked.out / f"slide-{asked.side}.svs"
    if not slide.exists():
        write_slide(slide, asked.side)
    rows = []
    for threads in sorted({1, asked.threads}):
        row = measure(Bench(slide, threads, asked.base), asked.rounds)
        if shutil.which("strace"):
            row["bytes_by_kernel"], row["bytes_read"] = count_bytes(slide, asked.base)
        rows.append(row)
        show(row, Console())
    (asked.out / f"traversal-{asked.base or 64}.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
