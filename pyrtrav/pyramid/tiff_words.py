"""What a TIFF says about its image in words: description, resolution, channels, display range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from pyrtrav.errors import UnsupportedFormatError
from pyrtrav.pyramid.pixels import Samples, Window
from pyrtrav.pyramid.tiff_decode import GIVES_RGB, PALETTE, SEPARATED, YCBCR

MICROMETRES = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4}
_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
# Alpha as the tag ExtraSamples tells it.
_ALPHA = {1: "premultiplied", 2: "straight"}


@dataclass(frozen=True)
class Ome:
    """What is used of an OME-XML description."""

    mpp: float | None
    channels: range
    """Numbers of the directories that hold the channels of the first plane."""


def read_ome(description: str) -> Ome | None:
    """Parse an OME-XML description; None where it is none."""
    if "<OME" not in description[:1000]:
        return None
    try:
        pixels = ElementTree.fromstring(description).find("{*}Image/{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    said = pixels.attrib
    try:
        unit = MICROMETRES.get(said.get("PhysicalSizeXUnit", "µm"), math.nan)
        mpp = float(said["PhysicalSizeX"]) * unit if "PhysicalSizeX" in said else None
        count = int(said.get("SizeC", 1))
        order = said.get("DimensionOrder", "XYCZT")
        before = order[: order.index("C")].replace("X", "").replace("Y", "")
        step = math.prod(int(said.get(f"Size{axis}", 1)) for axis in before)
        samples = [int(channel.attrib.get("SamplesPerPixel", 1)) for channel in pixels.findall("{*}Channel")]
    except ValueError:
        return None
    # One <Channel> of several samples is stored as RGB: then its directory is the whole image.
    together = samples[:1] == [count]
    return Ome(mpp, range(1) if together or min(count, step) < 1 else range(0, count * step, step))


def refuse_vendors(path: str, tif: tifffile.TiffFile) -> None:
    """Raise UnsupportedFormatError for a TIFF whose pixels only OpenSlide puts together, by OpenSlide's own signs."""
    pages: list[Any] = list(tif.pages)
    page = pages[0]
    description, software = page.description or "", page.software or ""
    xmp = b"".join(bytes(each.tags.valueof(700, b"")) for each in pages if 700 in each.tags)
    signs = {
        "Hamamatsu": 65420 in page.tags,
        "Leica": "http://www.leica-microsystems.com/scn/" in description,
        "Philips": software.startswith("Philips") and "DPUfsImport" in description,
        "Trestle": software.startswith("MedScan"),
        "Ventana": b"<iScan" in xmp,
        "Huron": description.startswith("Huron"),
        "Argos": "Argos.Scan.Metadata" in str(page.tags.valueof(65000, "")),
    }
    for vendor, found in signs.items():
        if found:
            raise UnsupportedFormatError(
                f"{path}: is a {vendor} slide, which is read by OpenSlide from local files only; download it first"
            )


def read_properties(tif: tifffile.TiffFile, ome: Ome | None) -> dict[str, str]:
    """Return the file's own words, with ``mpp`` from the most specific of them."""
    page: Any = tif.pages[0]
    description = page.description or ""
    found = {"format": "bigtiff" if tif.is_bigtiff else "tiff", "description": description}
    for name, code in (("sample-min", 340), ("sample-max", 341), ("orientation", 274)):
        value = page.tags.valueof(code)
        if value is not None:
            found[name] = str(value[0] if isinstance(value, tuple) else int(value))
    mpp: object = None
    if description.startswith("Aperio"):
        found["vendor"] = "aperio"
        pairs = (part.split("=", 1) for part in description.split("|")[1:] if "=" in part)
        found |= {f"aperio.{key.strip()}": value.strip() for key, value in pairs}
        mpp = found.get("aperio.MPP")
    elif ome is not None:
        found["vendor"] = "ome"
        mpp = ome.mpp
    else:
        mpp = _resolution_mpp(page)
    if mpp is not None:
        found["mpp"] = str(mpp)
    return found


def _resolution_mpp(page: Any) -> float | None:
    value, unit = page.tags.valueof(282), page.tags.valueof(296)
    if not isinstance(value, tuple) or len(value) != 2 or 0 in value:
        return None
    per_unit = _PER_RESOLUTION_UNIT.get(int(unit) if unit is not None else 2)
    return None if per_unit is None else per_unit * value[1] / value[0]


def read_samples(path: str, page: Any, planes: int, properties: dict[str, str]) -> Samples:
    """Return what a stored pixel holds, after ``natural_colors``.

    Raises:
        UnsupportedFormatError: a colour space that is not read.
    """
    photometric, dtype = int(page.photometric), np.dtype(page.dtype)
    count = planes if planes > 1 else int(page.samplesperpixel)
    if photometric == PALETTE:
        return Samples(3, np.dtype(np.uint8))
    if photometric == SEPARATED:
        if count < 4 or dtype != np.uint8:
            raise UnsupportedFormatError(f"{path}: separated inks that are not 8-bit CMYK are not supported")
        return Samples(3, np.dtype(np.uint8))
    if photometric == YCBCR and int(page.compression) not in GIVES_RGB:
        raise UnsupportedFormatError(f"{path}: YCbCr samples outside JPEG are not supported")
    if photometric > YCBCR:
        raise UnsupportedFormatError(f"{path}: its colour space (photometric {photometric}) is not supported")
    window = _window(int(page.bitspersample), dtype, properties)
    extra = tuple(int(value) for value in page.extrasamples or ())
    if len(extra) == 1 and extra[0] in _ALPHA and count > 1:
        return Samples(count - 1, dtype, "premultiplied" if extra[0] == 1 else "straight", window)
    return Samples(count, dtype, "none", window)


def _window(bits: int, dtype: np.dtype[Any], properties: dict[str, str]) -> Window | None:
    """The display range: all values below 8 bits, none for 8, what the file declares above."""
    if bits < 8:
        return 0.0, float((1 << bits) - 1)
    if dtype.itemsize == 1:
        return None
    try:
        low, high = float(properties["sample-min"]), float(properties["sample-max"])
    except (KeyError, ValueError):
        return None
    return (low, high) if high > low else None
