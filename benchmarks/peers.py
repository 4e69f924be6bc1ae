"""Other libraries that read slides, each as it is documented to be used, with its own default cache.

All are optional. An opener imports its library, opens the file, and returns a function that reads one window of
level 0 as RGB. Where a library's objects may not be shared by threads, each thread gets one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limit import Pixels

ReadWindow = Callable[[int, int, int, int], Pixels]
"""x, y, width, height in level-0 pixels -> (height, width, 3)."""


def openslide(path: Path) -> ReadWindow:
    """The alpha channel is left out by a view, which is the fastest way."""
    slide = import_module("openslide").OpenSlide(path)
    return lambda x, y, width, height: np.asarray(slide.read_region((x, y), 0, (width, height)))[..., :3]


def cucim(path: Path) -> ReadWindow:
    slide = import_module("cucim").CuImage(str(path))
    return lambda x, y, width, height: np.asarray(slide.read_region((x, y), (width, height), 0))


def libvips(path: Path) -> ReadWindow:
    vips = import_module("pyvips")
    local = threading.local()
    local.region = vips.Region.new(vips.Image.tiffload(str(path)))

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        if not hasattr(local, "region"):
            local.region = vips.Region.new(vips.Image.tiffload(str(path)))
        return np.frombuffer(local.region.fetch(x, y, width, height), np.uint8).reshape(height, width, 3)

    return read


def tifffile_decode(path: Path) -> ReadWindow:
    """A page's own decoder, tile by tile, the file handle locked."""
    tif = import_module("tifffile").TiffFile(path)
    tif.filehandle.set_lock(True)
    page: Any = tif.pages.first
    side, columns = page.tilewidth, -(-page.imagewidth // page.tilewidth)

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // side, (y + height - 1) // side + 1):
            for column in range(x // side, (x + width - 1) // side + 1):
                index = row * columns + column
                with tif.filehandle.lock:
                    tif.filehandle.seek(page.dataoffsets[index])
                    data = tif.filehandle.read(page.databytecounts[index])
                tile = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
                left, top = column * side - x, row * side - y
                x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
                out[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    return read


def zarr_over_tifffile(path: Path) -> ReadWindow:
    tif = import_module("tifffile").TiffFile(path)
    tif.filehandle.set_lock(True)
    array: Any = import_module("zarr").open_array(tif.pages.first.aszarr(), mode="r")
    return lambda x, y, width, height: np.asarray(array[y : y + height, x : x + width])


def tiffslide(path: Path) -> ReadWindow:
    slide = import_module("tiffslide").TiffSlide(path)
    return lambda x, y, width, height: np.asarray(slide.read_region((x, y), 0, (width, height), as_array=True))


def fastslide(path: Path) -> ReadWindow:
    slide = import_module("fastslide").FastSlide.from_file_path(str(path))
    return lambda x, y, width, height: np.asarray(slide.read_region((x, y), 0, (width, height)).numpy())


def large_image(path: Path) -> ReadWindow:
    source = import_module("large_image_source_tiff").open(str(path))

    def read(x: int, y: int, width: int, height: int) -> Pixels:
        region = {"left": x, "top": y, "width": width, "height": height}
        return np.asarray(source.getRegion(region=region, format="numpy")[0])

    return read


def slideio(path: Path) -> ReadWindow:
    scene = import_module("slideio").open_slide(str(path), "SVS").get_scene(0)
    return lambda x, y, width, height: np.asarray(scene.read_block((x, y, width, height)))


PEERS: dict[str, Callable[[Path], ReadWindow]] = {
    "OpenSlide": openslide,
    "cuCIM": cucim,
    "libvips": libvips,
    "tifffile": tifffile_decode,
    "zarr over tifffile": zarr_over_tifffile,
    "tiffslide": tiffslide,
    "fastslide": fastslide,
    "large_image": large_image,
    "slideio": slideio,
}

MODULES = {
    "OpenSlide": "openslide",
    "libvips": "pyvips",
    "zarr over tifffile": "zarr",
    "large_image": "large_image_source_tiff",
}
"""What to import, where it is not the name in lower case."""


def is_installed(name: str) -> str | None:
    """Return what the import said, or None where it succeeded."""
    try:
        import_module(MODULES.get(name, name.lower()))
    except Exception as error:  # noqa: BLE001 (whatever a half-installed library raises)
        return f"{type(error).__name__}: {error}"
    return None
