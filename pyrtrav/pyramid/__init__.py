"""Open any image as a pyramid: levels of tiles, read by region and size.

Where things are::

    open, remote_open, inspect, costs      which reader; what is known without a pixel
    base                                   reading: regions -> tiles -> patches; a backend adds levels and one tile
      batch, resample, kernels             which tiles, each once; how tiles become patches
      cache, buffers, handles, threads     decoded tiles, memory, open files and threads of the process
      tiles, pixels, limits                plain values; from stored samples to model pixels
    tiff (tiff_levels, _decode, _words)    TIFF, SVS, OME-TIFF
    slide                                  what OpenSlide reads
    omezarr (ngff, zarr_array, _store, _fallback)
    raster (flat), striped, converted, vips, convert   flat images, and the tiled pyramids made of large ones
    source, remote (_client, _store)       bytes of a file on a disk or behind a URL
    array                                  an image in memory
"""

from __future__ import annotations

from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.open import BACKENDS, open_pyramid
from pyrtrav.pyramid.tiles import Level, Patches, RawTile, Tile

__all__ = ["BACKENDS", "Level", "Patches", "Pyramid", "RawTile", "Tile", "open_pyramid"]
