"""Our reader and the limit in one process, turn by turn: ``python -m benchmarks.reader_pairs SLIDE SECONDS``.

Processes that run one after the other meet a different machine each, and neighbours come and go. Here every chunk of
64 windows is read four times in a rotating order, each time other windows of the same kind: by the limit and by
``read_many``, on one thread and on two. Prints medians over chunks of the ratios, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.limit import Limit, Window
from benchmarks.reader_child import BLOCK_SIDE, SIDE, Job, windows

WORKS = "aligned", "unaligned", "block"


def measure(slide: Path, work: str, seconds: float, cores: int) -> dict[str, float]:
    from pyrtrav.geometry import Region
    from pyrtrav.pyramid import open_pyramid

    limit, pyramid, pool = Limit(slide), open_pyramid(slide), ThreadPoolExecutor(2)
    side = BLOCK_SIDE if work == "block" else SIDE
    out = np.zeros((64, side, side, 3), np.uint8)

    def ours(threads: int, chunk: list[Window]) -> None:
        os.environ["PYRTRAV_THREADS"] = str(threads)
        patches = pyramid.read_many([Region(*window) for window in chunk], side, out=out)
        assert not any(patches.errors), patches.errors

    def bare(threads: int, chunk: list[Window]) -> None:
        def part(first: int) -> None:
            if work == "block":
                limit.read_once(chunk, out, first, threads)
            else:
                for number in range(first, len(chunk), threads):
                    limit.read(chunk[number], out[number])

        list(pool.map(part, range(threads)))

    turns: list[tuple[str, Callable[[int, list[Window]], None], int]] = [
        (f"{name} {threads}", read, threads)
        for threads in ((1, 2) if cores > 1 else (1,))
        for name, read in (("limit", bare), ("ours", ours))
    ]
    chunks: Iterator[Any] = windows(Job("limit", work, 1, seconds, 0, str(slide), ()))
    times: dict[str, list[float]] = {name: [] for name, _, _ in turns}
    for _, read, threads in turns:
        read(threads, next(chunks))
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for name, read, threads in turns:
            chunk = next(chunks)
            start = time.perf_counter()
            read(threads, chunk)
            times[name].append(time.perf_counter() - start)
        turns = turns[1:] + turns[:1]
    return _ratios(times)


def _ratios(times: dict[str, list[float]]) -> dict[str, float]:
    def ratio(over: str, under: str) -> float:
        return median(a / b for a, b in zip(times[over], times[under], strict=True))

    found = {"chunks": float(len(times["ours 1"])), "of_limit": ratio("limit 1", "ours 1")}
    if "ours 2" in times:
        found |= {"gain": ratio("ours 1", "ours 2"), "limit_gain": ratio("limit 1", "limit 2")}
    return found


def main() -> None:
    slide, seconds = Path(sys.argv[1]), float(sys.argv[2])
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({work: measure(slide, work, seconds, cores) for work in WORKS}))


if __name__ == "__main__":
    main()
