"""Memory follows what is attended, not how large the image is."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from tests.samples import REPOSITORY

TILE = 256
LOOKS = 64

CODE = """
import json, resource, sys
from pyrtrav.predict import Predictor
p = Predictor(device="cpu")
record = p.predict([sys.argv[1]], p.settings(budget=64, depth=9))[0].record
print(json.dumps([record["cost"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def write_sparse_pyramid(path: Path, side: int) -> None:
    """A BigTIFF of levels 1, 4, 16 and 32 whose tiles share 16 textured JPEG streams: megabytes at any size."""
    random = np.random.default_rng(0)
    streams = []
    for _ in range(16):
        coarse = random.integers(90, 230, (16, 16, 3), np.uint8)
        texture = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
        streams.append(simplejpeg.encode_jpeg(texture, quality=80, colorspace="RGB"))
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
        directory = 16
        starts = []
        sides = [side // downsample for downsample in (1, 4, 16, 32)]
        body = bytearray()
        # Directories first, each of a known length, then streams, then tables.
        length = 8 + 20 * 11 + 8
        streams_at = directory + length * len(sides)
        for stream in streams:
            starts.append(streams_at + len(body))
            body += stream
        tables = bytearray()
        tables_at = streams_at + len(body)
        out = bytearray()
        for number, level_side in enumerate(sides):
            count = (-(-level_side // TILE)) ** 2
            pick = np.arange(count) * 7 % 16
            offsets = np.array(starts, np.uint64)[pick]
            counts = np.array([len(s) for s in streams], np.uint64)[pick]
            where = []
            for table in (offsets, counts):
                where.append(tables_at + len(tables) if count > 1 else int(table[0]))
                tables += table.tobytes()
            entries = [
                (254, 4, 1, number > 0),
                (256, 4, 1, level_side),
                (257, 4, 1, level_side),
                (258, 3, 3, 8 | 8 << 16 | 8 << 32),
                (259, 3, 1, 7),
                (262, 3, 1, 6),
                (277, 3, 1, 3),
                (322, 4, 1, TILE),
                (323, 4, 1, TILE),
                (324, 16, count, where[0]),
                (325, 16, count, where[1]),
            ]
            following = directory + length * (number + 1) if number + 1 < len(sides) else 0
            out += struct.pack("<Q", len(entries))
            out += b"".join(struct.pack("<HHQQ", *map(int, entry)) for entry in entries)
            out += struct.pack("<Q", following)
        file.write(bytes(out) + bytes(body) + bytes(tables))


def peak_of(code: str, *arguments: object) -> tuple[dict[str, Any], int]:
    """Run code in a process of its own; returns what it prints: the cost of a run and the peak of memory."""
    # A small cache: the larger image has more tiles at the same depth, and all of them would be kept.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYRTRAV_CACHE_BYTES": str(4 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=REPOSITORY,
    )
    cost, peak = json.loads(done.stdout)
    return cost, peak


def test_a_hundred_times_the_pixels_take_the_same_memory(tmp_path: Path) -> None:
    peaks, tiles = {}, {}
    for side in (10_000, 100_000):
        path = tmp_path / f"{side}.tif"
        write_sparse_pyramid(path, side)
        assert path.stat().st_size < 20e6
        cost, peaks[side] = peak_of(CODE, path)
        assert cost["fixations"] == LOOKS
        tiles[side] = cost["tiles_distinct"]
    # Textured tiles wherever it goes: the larger image is not cheap for being empty.
    assert tiles[100_000] >= 64
    assert peaks[100_000] <= 1.10 * peaks[10_000], peaks
