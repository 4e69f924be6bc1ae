"""What no reader of JPEG tiles can beat by much: positioned read, decode, copy, and nothing else.

The tile's exact bytes are read, the shared tables and a colour marker put before them, and libjpeg-turbo decodes them
strictly into a buffer that is used again. No cache, no checks, no levels, no other formats.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""x, y, width, height in level-0 pixels."""

_YCBCR_MARKER = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, 1)


class Limit:
    """Level 0 of an Aperio file of JPEG tiles."""

    def __init__(self, path: Path) -> None:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages.first
            self.tile, self.columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)
            self._offsets, self._counts = list(page.dataoffsets), list(page.databytecounts)
            self._head = page.jpegtables[:-2] + _YCBCR_MARKER
        self._file = os.open(path, os.O_RDONLY)
        self._local = threading.local()

    def _slabs(self, count: int) -> Pixels:
        slabs: Pixels | None = getattr(self._local, "slabs", None)
        if slabs is None or len(slabs) < count:
            # Not on a multiple of 32 bytes: there libjpeg-turbo writes past the caches, and copying is slower.
            size = count * self.tile * self.tile * 3
            memory = np.zeros(size + 32, np.uint8)
            start = (16 - memory.ctypes.data) % 32
            slabs = memory[start : start + size].reshape(count, self.tile, self.tile, 3)
            self._local.slabs = slabs
        return slabs

    def decode(self, column: int, row: int, slab: Pixels, halvings: int = 0) -> Pixels:
        """Decode one tile into the slab, at 1/2, 1/4 or 1/8 by the decoder's own scaling if asked."""
        index = row * self.columns + column
        stream = self._head + os.pread(self._file, self._counts[index], self._offsets[index])[2:]
        if halvings:
            return simplejpeg.decode_jpeg(stream, min_factor=1 << halvings, min_height=1, min_width=1)  # type: ignore[no-any-return]
        return simplejpeg.decode_jpeg(stream, buffer=slab)  # type: ignore[no-any-return]

    def read(self, window: Window, out: Pixels) -> None:
        """Decode each tile of one window, and copy what is wanted of it."""
        slab = self._slabs(1)[0]
        for column, row in self.tiles_of(window):
            self._paste(self.decode(column, row, slab), column, row, window, out)

    def read_once(self, windows: Sequence[Window], out: Pixels, first: int = 0, step: int = 1) -> None:
        """Decode each distinct tile of all windows once, and copy it into every window that it touches.

        Of the tiles every ``step``-th from ``first`` on: several threads share the work.
        """
        where: dict[tuple[int, int], list[int]] = {}
        for number, window in enumerate(windows):
            for tile in self.tiles_of(window):
                where.setdefault(tile, []).append(number)
        slab = self._slabs(1)[0]
        for (column, row), numbers in list(where.items())[first::step]:
            pixels = self.decode(column, row, slab)
            for number in numbers:
                self._paste(pixels, column, row, windows[number], out[number])

    def decode_distinct(self, windows: Sequence[Window], halvings: int = 0) -> int:
        """Decode each distinct tile of all windows once, and copy nothing; returns how many these are."""
        slab = self._slabs(1)[0]
        tiles = sorted({(row, column) for window in windows for column, row in self.tiles_of(window)})
        for row, column in tiles:
            self.decode(column, row, slab, halvings)
        return len(tiles)

    def tiles_of(self, window: Window) -> list[tuple[int, int]]:
        x, y, width, height = window
        side = self.tile
        rows = range(y // side, (y + height - 1) // side + 1)
        return [(column, row) for row in rows for column in range(x // side, (x + width - 1) // side + 1)]

    def _paste(self, pixels: Pixels, column: int, row: int, window: Window, out: Pixels) -> None:
        x, y, width, height = window
        left, top = column * self.tile - x, row * self.tile - y
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + self.tile, width), min(top + self.tile, height)
        out[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
