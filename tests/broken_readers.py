"""What a reader imports in tests to meet files that break it: the name of a file says how."""

import ctypes
import os

import pyrtrav.pyramid.slide as slide
from pyrtrav.pyramid.open import BACKENDS
from pyrtrav.pyramid.tiles import RawTile

# OpenSlide ends the process on a TIFF whose tiles are declared larger than the memory; the reader refuses it before.
slide._refuse_giant_tiles = lambda path: None


class BrokenSlide(slide.SlidePyramid):
    """Aborts, or waits for ever in C, at the first tile of files that are named so."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        name = os.path.basename(self.path)
        if name.startswith("abort"):
            ctypes.CDLL(None).abort()
        if name.startswith("hang"):
            ctypes.CDLL(None).pause()
        return super()._decode_tile(level, column, row, shrink)


BACKENDS["slide"] = BrokenSlide
