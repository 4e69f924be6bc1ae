"""A slide to measure readers on: any size, written in seconds.

    python -m benchmarks.make_slide 40000 slide.svs

Aperio layout: BigTIFF, tiles of 256 px as abbreviated JPEG streams (YCbCr 4:2:0, quality 75) with shared tables,
levels 1, 4, 16 and 64, a disc of tissue on glass. A tissue tile takes about 10 kB, as in a stained section. The
picture is a mosaic of a few blocks, and an encoded tile is written again wherever it comes again.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.files import written_whole

TILE = 256
BLOCK = 1024
LEVELS = (0, 2, 4, 6)
"""Halvings."""

KINDS = "glass", "glass", "tissue", "tissue", "tissue", "tissue"
TISSUE_RADIUS = 0.8
"""Of the tissue disc, in halves of the slide's side."""

Pixels = NDArray[np.uint8]

_DESCRIPTION = (
    "Aperio Image Library v11.2.1\r\n{side}x{side} [0,0 {side}x{side}] (256x256) JPEG/RGB Q=75|AppMag = 40|MPP = 0.2520"
)


def tissue_square(side: int) -> tuple[int, int]:
    """Return (first, last + 1) level-0 pixel of the square, along either axis, in which all is tissue."""
    half = int(side / 2 * (TISSUE_RADIUS / 2**0.5)) - BLOCK
    return side // 2 - half, side // 2 + half


def write_slide(path: Path, side: int) -> Path:
    """Write a slide of ``side`` x ``side`` pixels; an existing one is replaced at the end."""
    mosaic = Mosaic(side)
    streams = iter(mosaic.tiles(0))
    first = next(streams)
    tiled: dict[str, Any] = {
        "photometric": "ycbcr",
        "compression": "jpeg",
        "subsampling": (2, 2),
        "tile": (TILE, TILE),
        "dtype": "uint8",
        "jpegtables": mosaic.tables,
        "subfiletype": 0,  # a reduced-image flag would hide a level from tifffile's reader of Aperio files
    }
    plain: dict[str, Any] = {"metadata": None, "software": False}  # tifffile's own description would hide Aperio's
    with written_whole(path) as beside, tifffile.TiffWriter(beside, bigtiff=True) as tif:
        description = _DESCRIPTION.format(side=side)
        shape = (side, side, 3)
        tif.write(_all(first, streams), shape=shape, description=description, **tiled, **plain)
        thumbnail = np.full((128, 128, 3), 240, np.uint8)  # the second page of an Aperio file is its thumbnail
        tif.write(thumbnail, photometric="rgb", compression="jpeg", rowsperstrip=16, **plain)
        for halvings in LEVELS[1:]:
            small = side >> halvings
            description = f"Aperio Image Library v11.2.1\r\n{side}x{side} -> {small}x{small} JPEG/RGB Q=75"
            tif.write(mosaic.tiles(halvings), shape=(small, small, 3), description=description, **tiled, **plain)
    return path


def _all(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


class Mosaic:
    """Which block lies where, and its tiles as JPEG streams."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.blocks = [halvings_of(make_block(kind, seed)) for seed, kind in enumerate(KINDS)]
        count = -(-side // BLOCK)
        centre = (np.arange(count) * BLOCK + BLOCK / 2 - side / 2) / (side / 2)
        random = np.random.default_rng(7)
        tissue = random.integers(2, len(KINDS), (count, count))
        glass = random.integers(0, 2, (count, count))
        self.layout = np.where(np.hypot(centre[:, None], centre) < TISSUE_RADIUS + BLOCK / side, tissue, glass)
        self.tables = b""
        self._streams: dict[tuple[int, int, int, int], bytes] = {}

    def tiles(self, halvings: int) -> Iterator[bytes]:
        """Yield the streams of a level, row by row."""
        count = -(-(self.side >> halvings) // TILE)
        for row in range(count):
            for column in range(count):
                yield self._stream(halvings, column, row)

    def _stream(self, halvings: int, column: int, row: int) -> bytes:
        across = (BLOCK >> halvings) // TILE
        if across == 0:  # several blocks in a tile: nothing comes again
            return self._encode(self._compose(halvings, column, row))
        block = int(self.layout[row // across, column // across])
        key = halvings, block, column % across, row % across
        if key not in self._streams:
            x, y = key[2] * TILE, key[3] * TILE
            self._streams[key] = self._encode(self.blocks[block][halvings][y : y + TILE, x : x + TILE])
        return self._streams[key]

    def _compose(self, halvings: int, column: int, row: int) -> Pixels:
        small = BLOCK >> halvings
        count = TILE // small
        rows, columns = (np.minimum(np.arange(i * count, (i + 1) * count), len(self.layout) - 1) for i in (row, column))
        picked = [[self.blocks[self.layout[r, c]][halvings] for c in columns] for r in rows]
        return np.concatenate([np.concatenate(line, axis=1) for line in picked])

    def _encode(self, pixels: Pixels) -> bytes:
        stream = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(pixels), level=75, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
        )
        self.tables, abbreviated = split_tables(bytes(stream))
        return abbreviated


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG into the stream of its tables (TIFF's tag 347) and the abbreviated rest."""
    tables = rest = b""
    at = 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = stream[at:end]
        if segment[1] in (0xDB, 0xC4):
            tables += segment
        elif segment[1] != 0xE0:  # the JFIF header is left out
            rest += segment
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[at:]


@functools.cache
def _frequencies() -> NDArray[np.float32]:
    down, across = np.fft.fftfreq(BLOCK)[:, None], np.fft.rfftfreq(BLOCK)
    frequencies: NDArray[np.float32] = (down**2 + across**2).astype(np.float32)
    return frequencies


def smooth_noise(random: np.random.Generator, sigma: float) -> NDArray[np.float32]:
    """Periodic noise, blurred by a Gaussian of ``sigma`` pixels, mean 0 and deviation 1."""
    spectrum = np.fft.rfft2(random.standard_normal((BLOCK, BLOCK), np.float32))
    blurred: NDArray[Any] = np.fft.irfft2(spectrum * np.exp(-2 * (np.pi * sigma) ** 2 * _frequencies()))
    return np.asarray(blurred / blurred.std(), np.float32)


def make_block(kind: str, seed: int) -> Pixels:
    """Return (BLOCK, BLOCK, 3) of empty glass, or of fibres, nuclei and holes in a stain's colours."""
    random = np.random.default_rng(1000 + seed)
    grain = smooth_noise(random, 0.8)[..., None]
    glass = np.array([241, 240, 243], np.float32)
    if kind == "glass":
        return np.asarray(np.clip(glass + 0.6 * grain, 0, 255), np.uint8)
    slow, middle, fine = (smooth_noise(random, sigma)[..., None] for sigma in (96, 16, 1.3))
    nuclei = 1 / (1 + np.exp(-(smooth_noise(random, 5)[..., None] - 1.25 - 0.35 * slow) * 9))
    holes = 1 / (1 + np.exp((slow + 1.6) * 8))
    pink = np.array([225, 150, 190], np.float32) + (9 * middle + 6 * fine) * np.array([0.6, 1, 0.7], np.float32)
    blue = np.array([92, 60, 140], np.float32) + 6 * fine
    tissue = pink * (1 - nuclei) + blue * nuclei
    return np.asarray(np.clip(tissue * (1 - holes) + glass * holes + 2.5 * grain, 0, 255), np.uint8)


def halvings_of(pixels: Pixels) -> list[Pixels]:
    """Return the picture and its means over 2, 4, ... 64 pixels."""
    levels = [pixels]
    while len(levels) <= LEVELS[-1]:
        height, width = levels[-1].shape[:2]
        sums = levels[-1].reshape(height // 2, 2, width // 2, 2, 3).astype(np.uint16).sum((1, 3), np.uint16)
        levels.append(((sums + 2) // 4).astype(np.uint8))
    return levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=int)
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    write_slide(asked.path, asked.side)


if __name__ == "__main__":
    main()
