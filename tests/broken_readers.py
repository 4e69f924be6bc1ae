"""What a reader imports in tests to meet files that break it: the name of a file says how."""

import ctypes
import os

import pyrtrav.pyramid.slide as slide
from pyrtrav.pyramid.open import BACKENDS
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiles import RawTile

# OpenSlide ends the process on a TIFF whose tiles are declared larger than the memory; the reader refuses it before.
slide._refuse_giant_tiles = lambda path: None


def break_on(path: str) -> None:
    """Abort, or wait for ever in C, on files that are named so."""
    name = os.path.basename(path)
    if name.startswith("abort"):
        ctypes.CDLL(None).abort()
    if name.startswith("hang"):
        ctypes.CDLL(None).pause()


class BrokenSlide(slide.SlidePyramid):
    """Breaks at the first tile."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        break_on(self.path)
        return super()._decode_tile(level, column, row, shrink)


class BrokenTiff(TiffPyramid):
    """Breaks at the first tile."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        break_on(self.path)
        return super()._decode_tile(level, column, row, shrink)


BACKENDS["slide"] = BrokenSlide
BACKENDS["tiff"] = BrokenTiff
