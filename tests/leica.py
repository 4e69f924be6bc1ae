"""A small Leica SCN file: OpenSlide shows the scanned area at its place on a larger slide, and tells its bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.geometry import Region

NANOMETRES = 500
"""A pixel of level 0."""

TILE = 256

_XML = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:00000000-0000-0000-0000-000000000001">
<collection name="c" uuid="urn:uuid:00000000-0000-0000-0000-000000000002" sizeX="{slide_x}" sizeY="{slide_y}">
<image name="i" uuid="urn:uuid:00000000-0000-0000-0000-000000000003">
<creationDate>2026-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1.4"/>
<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>
<view sizeX="{area_x}" sizeY="{area_y}" offsetX="{offset_x}" offsetY="{offset_y}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>
</image></collection></scn>"""


def write_leica(path: Path, pixels: NDArray[np.uint8], slide: tuple[int, int], corner: tuple[int, int]) -> Region:
    """Write a scanned area, (h, w, 3), with its corner at a place of a slide (width, height); returns its bounds.

    The area's sides must be multiples of 2 tiles.
    """
    height, width = pixels.shape[:2]
    levels = [pixels, pixels[::2, ::2]]
    sizes = (f'<dimension sizeX="{a.shape[1]}" sizeY="{a.shape[0]}" r="{i}" ifd="{i}"/>' for i, a in enumerate(levels))
    xml = _XML.format(
        slide_x=slide[0] * NANOMETRES,
        slide_y=slide[1] * NANOMETRES,
        width=width,
        height=height,
        dimensions="".join(sizes),
        area_x=width * NANOMETRES,
        area_y=height * NANOMETRES,
        offset_x=corner[0] * NANOMETRES,
        offset_y=corner[1] * NANOMETRES,
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level in levels:
            tif.write(
                np.ascontiguousarray(level), photometric="rgb", compression="jpeg", compressionargs={"level": 98},
                tile=(TILE, TILE), description=xml, metadata=None, software=False,
                resolution=(1e7 / NANOMETRES, 1e7 / NANOMETRES), resolutionunit=3,
            )  # fmt: skip
    return Region(*map(float, (*corner, width, height)))
