"""A tiled TIFF pyramid to OME-Zarr 0.4 (zarr format 2), which QuPath, napari and others read.

Chunks hold all channels of 512 x 512 pixels, compressed by Blosc with zstd: a slide of 100,000 px is some 50,000 files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from pyrtrav.errors import PyramidError
from pyrtrav.pyramid.omezarr import OmeZarrPyramid
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.vips import Report, row_of_tiles

CHUNK = 512
"""Side of the chunks in pixels: whole tiles of the TIFF."""

_COLOURS = {1: ("FFFFFF",), 3: ("FF0000", "00FF00", "0000FF")}


def write_omezarr(pyramid: TiffPyramid, folder: Path, name: str, report: Report) -> None:
    """Write all levels of a converted pyramid without alpha, and compare what was written with it.

    Args:
        pyramid: opened with ``window=(0, 1)``.
        folder: empty; becomes the image.
        name: of the image, for its metadata.
        report: is told how far it is.

    Raises:
        PyramidError: what is read back is not what was written.
    """
    group: Any = zarr.open_group(folder, mode="w", zarr_format=2)
    colors, dtype = pyramid.samples.colors, pyramid.samples.dtype
    total = 2 * sum(-(-level.height // CHUNK) for level in pyramid.levels)
    done = 0
    for level in pyramid.levels:
        array = group.create_array(
            str(level.index),
            shape=(colors, level.height, level.width),
            chunks=(colors, CHUNK, CHUNK),
            dtype=dtype,
            compressors=Blosc(cname="zstd", clevel=3, shuffle=Blosc.AUTOSHUFFLE),
            chunk_key_encoding={"name": "v2", "separator": "/"},
            # No chunk is left out, not even one of zeros: a missing chunk would be background.
            config={"write_empty_chunks": True},
        )
        for top in range(0, level.height, CHUNK):
            band = _band(pyramid, level.index, top)
            array[:, top : top + len(band), :] = np.moveaxis(band, 2, 0)
            done += 1
            report("writing OME-Zarr", done / total)
    group.attrs.update(_metadata(pyramid, name))
    with OmeZarrPyramid(str(folder), window=(0, 1)) as written:
        for level in pyramid.levels:
            for top in range(0, level.height, CHUNK):
                _compare(pyramid, written, level.index, top)
                done += 1
                report("comparing OME-Zarr", done / total)


def _band(pyramid: TiffPyramid, level: int, top: int) -> Any:
    """Rows ``top`` to ``top + CHUNK`` of a level, (h, w, n)."""
    tile = pyramid.levels[level].tile_height
    rows = range(top // tile, min((top + CHUNK) // tile, pyramid.levels[level].rows))
    return np.concatenate([row_of_tiles(pyramid, row, level) for row in rows])


def _compare(pyramid: TiffPyramid, written: OmeZarrPyramid, level: int, top: int) -> None:
    band = _band(pyramid, level, top)
    tiles = [written._raw_tile((level, column, top // CHUNK)) for column in range(written.levels[level].columns)]
    if any(tile is None for tile in tiles):
        raise PyramidError(f"{written.path}: a chunk of level {level} was not written")
    found = np.concatenate([tile.samples for tile in tiles if tile is not None], axis=1)[
        : band.shape[0], : band.shape[1]
    ]
    if not np.array_equal(found, band, equal_nan=band.dtype.kind == "f"):
        raise PyramidError(f"{written.path}: level {level} differs from the image in rows from {top}")


def _metadata(pyramid: TiffPyramid, name: str) -> dict[str, Any]:
    mpp = pyramid.mpp
    space = {"type": "space", "unit": "micrometer"} if mpp else {"type": "space"}
    datasets = [
        {
            "path": str(level.index),
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [1.0, level.downsample_y * (mpp or 1.0), level.downsample_x * (mpp or 1.0)],
                }
            ],
        }
        for level in pyramid.levels
    ]
    multiscale = {
        "version": "0.4",
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}],
        "datasets": datasets,
    }
    found: dict[str, Any] = {"multiscales": [multiscale]}
    colours = _COLOURS.get(pyramid.samples.colors)
    if colours is not None and pyramid.samples.dtype == np.uint8:
        window = {"min": 0, "max": 255, "start": 0, "end": 255}
        channels = [{"color": colour, "window": window, "active": True} for colour in colours]
        found["omero"] = {"channels": channels, "rdefs": {"model": "color" if len(colours) == 3 else "greyscale"}}
    return found
