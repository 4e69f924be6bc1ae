"""Real files with one change each: nothing may end in a traceback, hang, take much memory, or give wrong pixels.

    python -m benchmarks.fuzz --count 2000 --markdown docs/fuzz.md

Mutates TIFF, SVS, PNG, JPEG and OME-Zarr images and a model file: those that the project makes, and real ones where
there are any. Each mutant is read, window by window, or its model used, in a process of its own. Limits: 20 s and
2 GiB. Where only some tiles' bytes were changed, what is read of the others must be as in the file that was not.
Prints what is not as it should be, and exits with 1 if anything is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import zarr
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.damaged import in_child
from benchmarks.damaged_child import MEMORY_BYTES, Outcome, limit_memory, read_file
from benchmarks.fuzz_mutations import Mutant, mutate
from benchmarks.mnist_images import data_folder
from pyrtrav.errors import PyrtravError
from pyrtrav.files import written_whole
from pyrtrav.model_file import load_model
from pyrtrav.predict import Predictor

TIMEOUT_SECONDS = 20
GOOD = "right", "refused", "part"
REAL = (
    "slides/CMU-1-Small-Region.svs",
    "slides/test_tiled.tif",
    "slides/OS-1-detail.ome.tif",
    "slides/yb10kx5k.zstd.tiff",
    "slides/CMU-1-macro.ome.zarr",
    "odd/tiff_tiled_planar_16bit_RGB.tiff",
    "odd/tiff_tiled_ycbcr_jpeg_2x2_sampling.tif",
    "odd/hopper_bigtiff.tif",
    "odd/hopper_orientation_6.jpg",
    "odd/small.svs",
)


@dataclass(frozen=True)
class Finding:
    """What became of one mutant."""

    source: str
    seed: int
    mutant: str
    what: str
    detail: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


def make_sources(folder: Path) -> list[Path]:
    """Write a small image of each kind, and the shipped model; returns them and the real files that are there."""
    yy, xx = np.mgrid[:300, :420]
    pixels = np.stack([xx % 256, yy % 256, (xx * yy) % 256], axis=2).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    levels = [pixels, pixels[::2, ::2], pixels[::4, ::4]]
    for name, compression in (("jpeg", "jpeg"), ("deflate", "zlib"), ("lzw", "lzw"), ("plain", None)):
        with tifffile.TiffWriter(folder / f"{name}.tif", bigtiff=name == "lzw") as tif:
            for number, level in enumerate(levels):
                tif.write(level, tile=(64, 64), compression=compression, photometric="rgb", subfiletype=int(number > 0))
    tifffile.imwrite(folder / "strips.tif", pixels, rowsperstrip=32, compression="zlib", photometric="rgb")
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    Image.fromarray(pixels).save(folder / "a.jpg", quality=90)
    Image.fromarray(pixels).save(folder / "progressive.jpg", progressive=True)
    for version in (2, 3):
        group: Any = zarr.open_group(folder / f"v{version}.ome.zarr", mode="w", zarr_format=version)
        for number, level in enumerate(levels):
            array = group.create_array(str(number), shape=(3, *level.shape[:2]), chunks=(3, 64, 64), dtype=np.uint8)
            array[...] = np.moveaxis(level, 2, 0)
        axes: Any = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "cyx"]
        scales = [[{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}] for n in range(3)]
        datasets = [{"path": str(n), "coordinateTransformations": scale} for n, scale in enumerate(scales)]
        multiscales = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]}
        group.attrs.update(multiscales if version == 2 else {"ome": {"version": "0.5", **multiscales}})
    shutil.copy(load_model().path, folder / "model.safetensors")
    data = data_folder()
    return sorted(folder.iterdir()) + [data / name for name in REAL if (data / name).exists()]


def fuzz(sources: Sequence[Path], count: int, seed: int, folder: Path) -> Iterator[Finding]:
    """Yield what becomes of ``count`` mutants, of the sources by turns; ``folder`` holds one at a time."""
    torch.set_num_threads(1)
    originals = {}
    for source in sources:
        if source.suffix != ".safetensors":
            state, originals[source] = in_child(read_file, source)
            if state != "ok" or originals[source].error:
                raise SystemExit(f"{source}: the file itself cannot be read: {originals[source]}")
    for number in range(count):
        source = sources[number % len(sources)]
        target = folder / f"mutant{source.suffix if source.suffix != '.zarr' else '.ome.zarr'}"
        try:
            mutant = mutate(source, target, seed + number)
            if source in originals:
                yield _judge_image(source, target, mutant, seed + number, originals[source])
            else:
                yield _judge_model(source, target, mutant, seed + number)
        finally:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def _judge_image(source: Path, target: Path, mutant: Mutant, seed: int, original: Outcome) -> Finding:
    state, outcome = in_child(read_file, target, seconds=TIMEOUT_SECONDS)
    if state != "ok":
        return Finding(source.name, seed, mutant.what, state, outcome)
    what, detail = _compare(outcome, original, mutant)
    return Finding(source.name, seed, mutant.what, what, detail, outcome.seconds, outcome.peak_bytes)


def _compare(outcome: Outcome, original: Outcome, mutant: Mutant) -> tuple[str, str]:
    if outcome.peak_bytes > MEMORY_BYTES or "MemoryError" in (outcome.error or ""):
        return "memory", f"{outcome.peak_bytes >> 20} MiB {outcome.error or ''}"
    errors = [read.error for read in outcome.reads if read.error]
    if outcome.unplanned:
        return "unclear error", outcome.error or errors[0]
    if outcome.error:
        return "refused", outcome.error
    # Levels that cannot be used may be left out; their sizes tell the others.
    was = {(original.levels[r.window.level], r.window.x, r.window.y): r.pixels for r in original.reads}
    for read in outcome.reads:
        level = outcome.levels[read.window.level]
        width, height = outcome.tiles[read.window.level]
        tile = level[0], read.window.x // width, read.window.y // height
        before = was.get((level, read.window.x, read.window.y))
        if not mutant.untouched or read.pixels is None or before is None or before.shape != read.pixels.shape:
            continue
        if tile not in mutant.touched and not np.array_equal(before, read.pixels):
            return "wrong", f"window {read.window}"
    return ("part", errors[0]) if errors else ("right", "")


def _judge_model(source: Path, target: Path, mutant: Mutant, seed: int) -> Finding:
    state, found = in_child(use_model, target, seconds=TIMEOUT_SECONDS)
    what, detail, seconds, peak = found if state == "ok" else (state, found, 0.0, 0)
    return Finding(source.name, seed, mutant.what, what, detail, seconds, peak)


def use_model(path: Path) -> tuple[str, str, float, int]:
    """Load the model and classify an image with it."""
    limit_memory()
    begun = time.perf_counter()
    what, detail = "right", ""
    try:
        predictor = Predictor(path, device="cpu")
        pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
        image = path.with_name("image.png")
        Image.fromarray(pixels).save(image)
        record = predictor.predict([image])[0].record
        if record["status"] == "ok":
            total = sum(record["prediction"]["probabilities"].values())
            what, detail = ("right", "") if abs(total - 1) < 1e-6 else ("wrong", str(record["prediction"]))
        else:
            what, detail = "refused", record["error"]["message"]
    except PyrtravError as error:
        what, detail = ("refused" if str(path) in str(error) else "unclear error"), str(error)
    except Exception as error:  # noqa: BLE001 (what is looked for)
        what, detail = "unclear error", f"{type(error).__name__}: {error}"
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return what, detail, time.perf_counter() - begun, int(peak.split()[1]) << 10


def markdown(findings: Sequence[Finding], command: str) -> str:
    """The counts by file."""
    kinds = [*GOOD, *sorted({finding.what for finding in findings} - set(GOOD))]
    counts = Counter((finding.source, finding.what) for finding in findings)
    lines = [f"| file | {' | '.join(kinds)} | slowest, s | most memory, MiB |", "|---" * (len(kinds) + 3) + "|"]
    for source in dict.fromkeys(finding.source for finding in findings):
        own = [finding for finding in findings if finding.source == source]
        row = [str(counts[source, kind] or "") for kind in kinds]
        slowest, peak = max(f.seconds for f in own), max(f.peak_bytes for f in own) >> 20
        lines.append(f"| {source} | {' | '.join(row)} | {slowest:.1f} | {peak} |")
    return f"# Mutated files\n\n    {command}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose names hold this")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = [s for s in make_sources(Path(folder) / "sources") if asked.only in s.name]
        found = list(
            track(fuzz(sources, asked.count, asked.seed, Path(folder)), total=asked.count, console=Console(stderr=True))
        )
    bad = [finding for finding in found if finding.what not in GOOD]
    table = Table("file", "seed", "change", "what", "detail")
    for finding in bad:
        table.add_row(finding.source, str(finding.seed), finding.mutant, finding.what, finding.detail[:300])
    Console().print(table)
    print(Counter(finding.what for finding in found))
    if asked.markdown is not None:
        with written_whole(asked.markdown) as beside:
            beside.write_text(markdown(found, f"python -m benchmarks.fuzz --count {asked.count} --seed {asked.seed}"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
