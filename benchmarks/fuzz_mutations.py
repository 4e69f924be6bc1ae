"""Damage that knows the formats: one small change to a real file, and which of its pixels may differ for it.

Everything is drawn from a generator, so that a file's name and a seed name a mutant.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

ODD_NUMBERS = (0, 1, 2, 3, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**40, 2**63, 1e308, 0.5, "", "a", "../../../../etc/passwd", "/etc/passwd", "\x00",
    [], [0], [-1, 2**40], {}, {"a": {}}, [[[[]]]], "9" * 400,
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed file."""

    what: str
    untouched: bool = False
    """Whether all pixels but those of ``touched`` must be as they were, where they can be read; else the change may
    mean other pixels."""
    touched: frozenset[tuple[int, int, int]] = frozenset()
    """Width of the level, column and row of tiles that changed."""


def mutate(source: Path, target: Path, seed: int) -> Mutant:
    """Write a mutant of ``source`` to ``target``, which does not exist; a folder for a folder."""
    rng = random.Random(f"{source.name} {seed}")
    if source.is_dir():
        shutil.copytree(source, target)
        return _mutate_zarr(target, rng)
    data = bytearray(source.read_bytes())
    kinds: dict[str, Callable[[bytearray, random.Random], Mutant]] = {
        ".png": _mutate_png,
        ".jpg": _mutate_jpeg,
        ".safetensors": _mutate_model,
    }
    kind = kinds.get(source.suffix.lower())
    mutant = kind(data, rng) if kind else _Tiff(source, data).mutate(rng)
    target.write_bytes(data)
    return mutant


def _flip(data: bytearray, start: int, length: int, rng: random.Random) -> None:
    """Turn some bits over."""
    for _ in range(rng.choice((1, 1, 4, 32))):
        data[start + rng.randrange(length)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> str:
    length = rng.choice((0, 1, 8, 100, *(rng.randrange(len(data)) for _ in range(6)), len(data) - 1))
    del data[length:]
    return f"cut to {length} bytes"


# TIFF.


class _Tiff:
    """Where a TIFF keeps what it says."""

    def __init__(self, source: Path, data: bytearray) -> None:
        self.data = data
        with tifffile.TiffFile(source) as tif:
            self.order, self.big = tif.byteorder, tif.is_bigtiff
            pages: list[Any] = [page for main in tif.pages for page in (main, *(main.pages or ()))]
            self.entries = [
                (tag.offset, tag.valueoffset, tag.count, tag.name) for p in pages for tag in p.tags.values()
            ]
            self.links = [page.offset for page in pages]
            self.tables = [
                (page, tag.valueoffset, int(tag.dtype), name)
                for page in pages
                for name in ("TileOffsets", "StripOffsets", "TileByteCounts", "StripByteCounts")
                if (tag := page.tags.get(name)) is not None
            ]
            self.stored = [
                (_where(page, number), start, length)
                for page in pages
                for number, (start, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True))
                if length
            ]

    def mutate(self, rng: random.Random) -> Mutant:
        kinds = (self.tile, self.tile, self.tile, self.table, self.table, self.entry, self.entry, self.entry, self.cut)
        return rng.choice((*kinds, self.anywhere, self.header))(rng)

    def tile(self, rng: random.Random) -> Mutant:
        where, start, length = rng.choice(self.stored)
        action = rng.choice(("flip", "zeros", "noise", "noise in its head"))
        if action == "flip":
            _flip(self.data, start, length, rng)
        else:
            length = min(length, 64) if action == "noise in its head" else length
            self.data[start : start + length] = bytes(length) if action == "zeros" else rng.randbytes(length)
        # Tiles may share their bytes.
        also = {other for other, first, count in self.stored if first < start + length and start < first + count}
        return Mutant(f"{action} in the tile {where}", True, frozenset({where, *also}))

    def table(self, rng: random.Random) -> Mutant:
        page, at, kind, name = rng.choice(self.tables)
        size = {3: 2, 4: 4, 13: 4, 16: 8, 18: 8}[kind]
        number = rng.randrange(len(page.dataoffsets))
        end = len(self.data)
        value = rng.choice((0, 1, 2, end - 1, end, end + 10**6, 2 ** (8 * size) - 1, rng.randrange(end)))
        value %= 2 ** (8 * size)
        where = _where(page, number)
        if self._number(at + number * size, size) == value:
            return Mutant("nothing", True)
        self._put(at + number * size, value, size)
        return Mutant(f"{name} of the tile {where} is {value}", True, frozenset({where}))

    def entry(self, rng: random.Random) -> Mutant:
        offset, value_offset, count, name = rng.choice(self.entries)
        field = rng.choice(("code", "type", "count", "value", "value", "value"))
        wide = 8 if self.big else 4
        place, size = {"code": (0, 2), "type": (2, 2), "count": (4, wide), "value": (4 + wide, wide)}[field]
        value = rng.choice((*ODD_NUMBERS, rng.randrange(2**16), len(self.data))) % 2 ** (8 * size)
        if field == "value" and value_offset != offset + place:
            self._put(value_offset + rng.randrange(min(count, 8)), value % 256, 1)
        else:
            self._put(offset + place, value, size)
        return Mutant(f"{field} of {name} is {value}")

    def cut(self, rng: random.Random) -> Mutant:
        said = _cut(self.data, rng)
        return Mutant(said, True, frozenset(w for w, start, length in self.stored if start + length > len(self.data)))

    def anywhere(self, rng: random.Random) -> Mutant:
        _flip(self.data, 0, len(self.data), rng)
        return Mutant("bits anywhere")

    def header(self, rng: random.Random) -> Mutant:
        place = rng.choice((0, 2, 4, *self.links))
        value = rng.choice((*ODD_NUMBERS, *self.links, len(self.data) - 2))
        self._put(place, value % 2**16, 2)
        return Mutant(f"{value} at {place}")

    def _put(self, place: int, value: int, size: int) -> None:
        self.data[place : place + size] = value.to_bytes(size, "little" if self.order == "<" else "big")

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self.data[place : place + size], "little" if self.order == "<" else "big")


def _where(page: Any, number: int) -> tuple[int, int, int]:
    """Width of the level, column and row; planes of their own lie behind one another."""
    across = -(-page.imagewidth // (page.tilewidth or page.imagewidth)) if page.is_tiled else 1
    down = -(-page.imagelength // (page.tilelength if page.is_tiled else page.rowsperstrip))
    number %= across * down
    return page.imagewidth, number % across, number // across


# PNG and JPEG.


def _mutate_png(data: bytearray, rng: random.Random) -> Mutant:
    chunks = []
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((at, length, bytes(data[at + 4 : at + 8])))
        at += length + 12
    start, length, kind = rng.choice(chunks)
    action = rng.choice(("flip", "flip and mend the checksum", "length", "remove", "twice", "cut"))
    if action == "cut":
        return Mutant(_cut(data, rng), True)
    if action.startswith("flip") and length:
        _flip(data, start + 8, length, rng)
        if "mend" in action:
            data[start + 8 + length : start + 12 + length] = zlib.crc32(data[start + 4 : start + 8 + length]).to_bytes(
                4
            )
        return Mutant(f"{action} in {kind!r}", kind == b"IDAT" and "mend" not in action)
    if action == "remove":
        del data[start : start + 12 + length]
    elif action == "twice":
        data[start:start] = data[start : start + 12 + length]
    else:
        data[start : start + 4] = rng.choice(ODD_NUMBERS).to_bytes(4, "big")
    return Mutant(f"{action} of {kind!r}")


def _mutate_jpeg(data: bytearray, rng: random.Random) -> Mutant:
    segments = []
    at = 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big") + 2
        segments.append((at, length))
        at += length
    start, length = rng.choice(segments)
    action = rng.choice(("flip", "flip", "length", "remove", "twice", "cut", "scan", "scan"))
    if action == "cut":
        return Mutant(_cut(data, rng))
    if action == "scan":
        _flip(data, at, len(data) - at, rng)
    elif action == "flip":
        _flip(data, start, length, rng)
    elif action == "length":
        data[start + 2 : start + 4] = (rng.choice(ODD_NUMBERS) % 65536).to_bytes(2, "big")
    elif action == "remove":
        del data[start : start + length]
    else:
        data[start:start] = data[start : start + length]
    return Mutant(f"{action} at {start}")


# OME-Zarr.


def _mutate_zarr(folder: Path, rng: random.Random) -> Mutant:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    said = [path for path in files if path.name in (".zarray", ".zattrs", ".zgroup", "zarr.json")]
    path = rng.choice(rng.choice((said, [path for path in files if path not in said])))
    name = path.relative_to(folder).as_posix()
    if path not in said:
        data = bytearray(path.read_bytes())
        action = rng.choice(("flip", "cut", "noise", "remove"))
        if action == "remove":
            path.unlink()  # a missing chunk is background, by the format
            return Mutant(f"{name} removed")
        if action == "flip":
            _flip(data, 0, len(data), rng)
        elif action == "cut":
            _cut(data, rng)
        else:
            data[:] = rng.randbytes(len(data))
        path.write_bytes(data)
        return Mutant(f"{action} in {name}")
    if rng.random() < 0.2:
        data = bytearray(path.read_bytes())
        _flip(data, 0, len(data), rng)
        path.write_bytes(data)
        return Mutant(f"flip in {name}")
    return Mutant(f"{name}: {_change_json(path, rng)}")


def _change_json(path: Path, rng: random.Random) -> str:
    described = json.loads(path.read_text())
    said = change_value(described, rng)
    path.write_text(json.dumps(described))
    return said


def change_value(described: Any, rng: random.Random) -> str:
    """Change, remove or add one value somewhere in JSON."""
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            visit(value[key])

    visit(described)
    if not places:
        described["zarr_format"] = rng.choice(ODD_VALUES)
        return "a value added"
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
        return f"{key!r} removed"
    holder[key] = rng.choice(ODD_VALUES)
    return f"{key!r} is {str(holder[key])[:40]!r}"


# Models.


def _mutate_model(data: bytearray, rng: random.Random) -> Mutant:
    (length,) = struct.unpack("<Q", data[:8])
    action = rng.choice(("length", "header", "header", "card", "card", "card", "flip", "weights", "cut"))
    if action == "cut":
        return Mutant(_cut(data, rng))
    if action == "length":
        data[:8] = struct.pack("<Q", rng.choice((*ODD_NUMBERS, 2**40, 2**63, 2**64 - 1)))
    elif action == "flip":
        _flip(data, 8, length, rng)
    elif action == "weights":
        start = 8 + length + 4 * rng.randrange((len(data) - 8 - length) // 4)
        data[start : start + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38, -1e38)))
    else:
        header = json.loads(data[8 : 8 + length])
        if action == "card":
            card = json.loads(header["__metadata__"]["pyrtrav"])
            said = change_value(card, rng)
            header["__metadata__"]["pyrtrav"] = json.dumps(card)
        else:
            said = change_value(header, rng)
        packed = json.dumps(header).encode()
        data[:] = struct.pack("<Q", len(packed)) + packed + data[8 + length :]
        return Mutant(f"{action}: {said}")
    return Mutant(action)
