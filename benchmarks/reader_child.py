"""One measurement of one reader, in a process of its own: ``python -m benchmarks.reader_child JSON``.

Prints one JSON object. Windows lie in tissue, and those of one pass share no tile, so that no cache helps anyone;
a pass is far more than any cache holds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = 256
BLOCK_SIDE, BLOCK_STRIDE, BLOCK_COUNT = 224, 112, 8
CHUNK = 64
"""Windows in one call of a batched reader; one block."""

OURS = {"pyrtrav read": False, "pyrtrav read_many": True, "pyrtrav read_many, cache": True}
"""Our ways of reading, and whether they take many windows at once. The last has its default cache, the others none."""

HALF = "limit at 1/2"
"""The limit where the decoder may scale."""


@dataclass(frozen=True)
class Job:
    """What to measure."""

    reader: str
    work: str
    """aligned, unaligned, block, half (the block at downsample 2), or open."""
    threads: int
    seconds: float
    seed: int
    path: str
    cores: tuple[int, ...]

    @property
    def batched(self) -> bool:
        return OURS.get(self.reader, False)

    @property
    def callers(self) -> int:
        """Threads that call the reader; a batched one has its own."""
        return 1 if self.batched else self.threads


def windows(job: Job) -> Iterator[list[tuple[int, int, int, int]]]:
    """Yield chunks of windows without end: single ones at random, or blocks of 8 x 8 half-overlapping ones."""
    import numpy as np
    import tifffile

    from benchmarks.make_slide import tissue_square

    with tifffile.TiffFile(job.path) as tif:
        first, end = tissue_square(tif.pages.first.imagewidth)
    random = np.random.default_rng(job.seed)
    scale = 2 if job.work == "half" else 1
    span = scale * (BLOCK_STRIDE * (BLOCK_COUNT - 1) + BLOCK_SIDE)
    in_blocks = job.work in ("block", "half")
    # Tiles from one window to the next, so that they share none: 1, 2, or what a block covers.
    apart = SIDE * ({"aligned": 1, "unaligned": 2}.get(job.work) or -(-span // SIDE) + 1)
    places = np.arange(-(-first // SIDE) * SIDE, end - apart, apart)
    while True:
        corners = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
        random.shuffle(corners)
        if job.work != "aligned":
            corners += random.integers(1, SIDE, corners.shape)
        if in_blocks:
            side, stride = scale * BLOCK_SIDE, scale * BLOCK_STRIDE
            steps = [(i * stride, j * stride) for j in range(BLOCK_COUNT) for i in range(BLOCK_COUNT)]
            for x, y in corners.tolist():
                yield [(x + i, y + j, side, side) for i, j in steps]
        else:
            for start in range(0, len(corners) - CHUNK + 1, CHUNK):
                yield [(x, y, SIDE, SIDE) for x, y in corners[start : start + CHUNK].tolist()]


ReadChunk = Callable[[Sequence[tuple[int, int, int, int]], Any], Any]
"""Windows, and a buffer (n, side, side, 3) to use if wanted -> the pixels of each."""


def make_reader(job: Job) -> ReadChunk:
    """Open the file with the job's reader."""
    path = Path(job.path)
    if job.reader in OURS:
        return _ours(path, job.batched)
    if job.reader in ("limit", HALF):
        return _limit(path, job)
    from benchmarks.peers import PEERS

    read_one = PEERS[job.reader](path)
    return lambda chunk, out: [read_one(*window) for window in chunk]


def _ours(path: Path, batched: bool) -> ReadChunk:
    from pyrtrav.geometry import Region
    from pyrtrav.pyramid import open_pyramid

    pyramid = open_pyramid(path)

    def many(chunk: Sequence[tuple[int, int, int, int]], out: Any) -> Any:
        patches = pyramid.read_many([Region(*window) for window in chunk], out.shape[1], out=out)
        assert not any(patches.errors), patches.errors
        return patches.pixels

    def one_by_one(chunk: Sequence[tuple[int, int, int, int]], out: Any) -> Any:
        return [pyramid.read(Region(*window), out.shape[1]).pixels for window in chunk]

    return many if batched else one_by_one


def _limit(path: Path, job: Job) -> ReadChunk:
    from benchmarks.limit import Limit

    limit = Limit(path)

    def single(chunk: Sequence[tuple[int, int, int, int]], out: Any) -> Any:
        for window, pixels in zip(chunk, out, strict=True):
            limit.read(window, pixels)
        return out

    def block(chunk: Sequence[tuple[int, int, int, int]], out: Any) -> Any:
        limit.read_once(chunk, out)
        return out

    def distinct(chunk: Sequence[tuple[int, int, int, int]], out: Any) -> Any:
        limit.decode_distinct(chunk, int(job.reader == HALF))

    return {"block": block, "half": distinct}.get(job.work, single)


def measure(job: Job) -> dict[str, Any]:
    """Return windows per second, and per second of the processor's time, which other processes disturb less.

    And the largest difference from the limit's pixels.
    """
    import numpy as np

    read = make_reader(job)
    chunks, lock = windows(job), threading.Lock()
    side = BLOCK_SIDE if job.work in ("block", "half") else SIDE
    # Readers that take windows one by one look at the clock more often.
    count = CHUNK if job.batched or side == BLOCK_SIDE else CHUNK // 4
    barrier = threading.Barrier(job.callers)

    def work(_: int) -> tuple[float, float]:
        out = np.zeros((count, side, side, 3), np.uint8)
        with lock:
            warm = next(chunks)[:count]
        read(warm, out)
        barrier.wait(10)  # ends too where another caller has failed
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while True:
            with lock:
                chunk = next(chunks)
            for at in range(0, len(chunk), count):
                read(chunk[at : at + count], out)
                done += count
                elapsed = time.perf_counter() - start
                if elapsed >= job.seconds:
                    return done / elapsed, done / (time.process_time() - cpu)

    with ThreadPoolExecutor(job.callers) as pool:
        rates = list(pool.map(work, range(job.callers)))
    return {
        "rate": sum(rate for rate, _ in rates),
        "cpu_rate": sum(cpu_rate for _, cpu_rate in rates),
        "difference": None if job.work == "half" else difference(job, read, next(chunks), side),
    }


def difference(job: Job, read: ReadChunk, chunk: list[tuple[int, int, int, int]], side: int) -> int:
    """Return the largest difference of any pixel of a few windows from the limit's."""
    import numpy as np

    from benchmarks.limit import Limit

    chunk = chunk[:8]
    pixels = np.array(read(chunk, np.zeros((len(chunk), side, side, 3), np.uint8)))
    limit, truth = Limit(Path(job.path)), np.zeros((side, side, 3), np.uint8)
    worst = 0
    for window, found in zip(chunk, pixels, strict=True):
        limit.read(window, truth)
        worst = max(worst, int(np.abs(found.astype(int) - truth).max()))
    return worst


def measure_open(job: Job) -> dict[str, Any]:
    """Return milliseconds to open after importing, and the growth of resident memory at its peak, in MiB."""
    small = Path(job.path).with_name("small.svs")
    window = 0, 0, SIDE, SIDE
    import numpy as np

    start = time.perf_counter()
    # A small file first: imports and whatever a library prepares once are not the file's.
    read = make_reader(Job(**{**vars(job), "path": str(small)}))
    out = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    read([window], out)
    first = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    start = time.perf_counter()
    read = make_reader(job)
    opened = time.perf_counter() - start
    growth = _status("VmHWM") - before
    start = time.perf_counter()
    read([window], out)
    return {
        "first_ms": first * 1e3,
        "open_ms": opened * 1e3,
        "growth_mib": growth / 1024,
        "window_ms": (time.perf_counter() - start) * 1e3,
    }


def _status(field: str) -> int:
    """Kibibytes of this process by /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, job.cores)
    try:
        result = measure_open(job) if job.work == "open" else measure(job)
    except Exception as error:  # noqa: BLE001 (the table says what a reader raised)
        result = {"error": f"{type(error).__name__}: {error}"[:300]}
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
