"""Small slides of mixed formats, some of them broken in twelve ways: a cohort to classify."""

from __future__ import annotations

import csv
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SIDE = 768
TILE = 256
LEVELS = 3

Pixels = NDArray[np.uint8]


MOTIFS = 40


def picture(number: int) -> Pixels:
    """Blots on glass, others, or elsewhere, for every number."""
    turn, motif = divmod(number, MOTIFS)
    return np.roll(_motif(motif), (turn * 37 % SIDE, turn * 59 % SIDE), (0, 1))


@cache
def _motif(number: int) -> Pixels:
    random = np.random.default_rng(number)
    coarse = random.integers(60, 255, (12, 12, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    grain = np.repeat(np.repeat(random.integers(-12, 12, (SIDE // 2, SIDE // 2, 1), np.int16), 2, 0), 2, 1)
    made: Pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return made


def halved(pixels: Pixels, times: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).reduce(1 << times))


def _pyramid(path: Path, pixels: Pixels, *, sub: bool = False, **options: Any) -> None:
    plain: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE), "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, subifds=LEVELS - 1 if sub else None, **{**plain, **options})
        options.pop("description", None)
        for level in range(1, LEVELS):
            tif.write(halved(pixels, level), subfiletype=1, **{**plain, **options})


def write_svs(path: Path, pixels: Pixels) -> None:
    said = f"Aperio Image Library v11.2.1\r\n{SIDE}x{SIDE} (256x256) JPEG/RGB Q=75|AppMag = 20|MPP = 0.5"
    _pyramid(path, pixels, compression="jpeg", description=said)


def write_tif(path: Path, pixels: Pixels) -> None:
    _pyramid(path, pixels, compression="deflate")


def write_subifds(path: Path, pixels: Pixels) -> None:
    _pyramid(path, pixels, sub=True, compression="lzw")


def write_strips(path: Path, pixels: Pixels) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=32, metadata=None, software=False)


def write_deep(path: Path, pixels: Pixels) -> None:
    deep = pixels[..., 0].astype(np.uint16) * 16
    tifffile.imwrite(path, deep, photometric="minisblack", tile=(TILE, TILE), metadata=None, software=False)


def write_flat(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def write_zarr(path: Path, pixels: Pixels) -> None:
    """OME-Zarr 0.4, without compression."""
    path.mkdir()
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    datasets = []
    for level in range(LEVELS):
        small, side = halved(pixels, level), SIDE >> level
        (path / str(level)).mkdir()
        array = {
            "zarr_format": 2, "shape": [3, side, side], "chunks": [3, TILE, TILE], "dtype": "|u1", "compressor": None,
            "fill_value": 0, "order": "C", "filters": None, "dimension_separator": ".",
        }  # fmt: skip
        (path / str(level) / ".zarray").write_text(json.dumps(array))
        for row in range(-(-side // TILE)):
            for column in range(-(-side // TILE)):
                chunk = np.zeros((TILE, TILE, 3), np.uint8)
                part = small[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                chunk[: part.shape[0], : part.shape[1]] = part
                (path / str(level) / f"0.{row}.{column}").write_bytes(chunk.transpose(2, 0, 1).tobytes())
        scale = {"type": "scale", "scale": [1, 1 << level, 1 << level]}
        datasets.append({"path": str(level), "coordinateTransformations": [scale]})
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]}))


WRITERS: dict[str, Callable[[Path, Pixels], None]] = {
    "svs": write_svs,
    "tif": write_tif,
    "ome.tif": write_subifds,
    "strips.tif": write_strips,
    "deep.tif": write_deep,
    "ome.zarr": write_zarr,
    "png": write_flat,
    "jpg": write_flat,
}
"""By the ending of the name."""


# Broken ones.


def _cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _random_tiles(path: Path) -> None:
    with tifffile.TiffFile(path) as tif:
        spans = [span for page in tif.pages for span in zip(page.dataoffsets, page.databytecounts, strict=True)]
    with path.open("r+b") as file:
        for offset, length in spans:
            file.seek(offset)
            file.write(np.random.default_rng(0).bytes(length))


def _write_text(path: Path) -> None:
    path.write_text("This is no slide.\n" * 20)


def _lost_directory(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", 1 << 31))


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that declares 2 x 10^11 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 500_000, 400_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _short_chunks(path: Path) -> None:
    for chunk in path.glob("*/0.*"):
        os.truncate(chunk, 1000)


BREAKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "missing": ("tif", lambda path: path.unlink()),
    "empty": ("svs", lambda path: _cut(path, 0)),
    "text": ("tif", _write_text),
    "header-only": ("svs", lambda path: os.truncate(path, 100)),
    "cut-in-half": ("svs", lambda path: _cut(path, 0.5)),
    "random-tiles": ("svs", _random_tiles),
    "lost-directory": ("tif", _lost_directory),
    "png-cut": ("png", lambda path: _cut(path, 0.6)),
    "png-bomb": ("png", _bomb),
    "zarr-without-metadata": ("ome.zarr", lambda path: (path / ".zattrs").unlink()),
    "zarr-short-chunks": ("ome.zarr", _short_chunks),
    "named-pipe": ("svs", _pipe),
}
"""By name: of which format, and what is done to it."""


def write_cohort(folder: Path, count: int, broken: int) -> Path:
    """Write ``count`` images, ``broken`` of them damaged and spread over the list; returns the table of their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    every = count // broken if broken else count + 1
    names = []
    for number in range(count):
        turn, is_bad = divmod(number, every)[0], number % every == every - 1 and number // every < broken
        if is_bad:
            how = list(BREAKS)[turn % len(BREAKS)]
            ending, harm = BREAKS[how]
            name = f"{number:05d}-bad-{how}.{ending}"
        else:
            ending = list(WRITERS)[number % len(WRITERS)]
            name = f"{number:05d}.{ending}"
        WRITERS[ending](folder / name, picture(number))
        if is_bad:
            harm(folder / name)
        names.append(name)
    table = folder / "list.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path"], *([name] for name in names)])
    return table
