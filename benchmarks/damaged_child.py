"""Reading one file that may be anything, and what other libraries read there; each runs in a process of its own."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pyrtrav.errors import CorruptImageError, PyrtravError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Level, Pyramid, open_pyramid

Pixels = NDArray[np.uint8]

MEMORY_BYTES = 2 << 30
NOBODY = 65534
WINDOW_SIDE = 512
ACROSS = 8
"""At most so many windows along each side of a level."""


@dataclass(frozen=True)
class Window:
    """Pixels of one level, at most one stored tile of them."""

    level: int
    x: int
    y: int
    width: int
    height: int


@dataclass
class Read:
    """What our reader made of one window."""

    window: Window
    pixels: Pixels | None = None
    valid: NDArray[np.bool_] | None = None
    error: str | None = None
    tile: tuple[int, int, int] | None = None
    """Level, column and row that the error names."""


@dataclass
class Outcome:
    """What our reader made of a file."""

    error: str | None = None
    """Why it could not be opened."""
    unplanned: bool = False
    """Whether that, or any tile's error, is none of our own kinds, or names no file."""
    levels: list[tuple[int, int]] = field(default_factory=list)
    tiles: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each level's tiles."""
    mpp: float | None = None
    reads: list[Read] = field(default_factory=list)
    seconds: float = 0
    peak_bytes: int = 0


def limit_memory() -> None:
    """Bound what this process may allocate beyond what it has, whether it touches it or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_file(path: Path) -> Outcome:
    """Open the file and read windows of every level; never raises."""
    limit_memory()
    if _is_forbidden(path):
        os.setuid(NOBODY)  # the superuser may read everything
    Path("/proc/self/clear_refs").write_text("5") if os.geteuid() == 0 else None
    start, outcome = time.perf_counter(), Outcome()
    try:
        with open_pyramid(path) as pyramid:
            outcome.levels = [(level.width, level.height) for level in pyramid.levels]
            outcome.tiles = [(level.tile_width, level.tile_height) for level in pyramid.levels]
            outcome.mpp = pyramid.mpp
            for level in pyramid.levels:
                outcome.reads += [_read(pyramid, window, outcome) for window in windows_of(level)]
    except Exception as error:  # noqa: BLE001 (any other kind is what is looked for)
        outcome.error = _said(error, path, outcome)
    outcome.seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    outcome.peak_bytes = int(peak.split()[1]) << 10
    return outcome


def _is_forbidden(path: Path) -> bool:
    try:
        return stat.S_IMODE(path.stat().st_mode) == 0 and os.geteuid() == 0
    except OSError:
        return False


def _said(error: Exception, path: Path, outcome: Outcome) -> str:
    if not isinstance(error, PyrtravError) or str(path) not in str(error):
        outcome.unplanned = True
    return f"{type(error).__name__}: {str(error).replace(str(path), path.name)}"


def _read(pyramid: Pyramid, window: Window, outcome: Outcome) -> Read:
    level, read = pyramid.levels[window.level], Read(window)
    scale_x, scale_y = level.downsample_x, level.downsample_y
    region = Region(window.x * scale_x, window.y * scale_y, window.width * scale_x, window.height * scale_y)
    try:
        read.pixels, read.valid = pyramid.read(region, (window.width, window.height), mask=True)
    except Exception as error:  # noqa: BLE001
        read.error = _said(error, Path(pyramid.path), outcome)
        if isinstance(error, CorruptImageError) and error.level is not None:
            read.tile = error.level, error.column or 0, error.row or 0
    return read


def windows_of(level: Level) -> list[Window]:
    """Return windows over the whole level, the last ones at its far edges; each within a stored tile."""
    side_x, side_y = min(level.tile_width, WINDOW_SIDE), min(level.tile_height, WINDOW_SIDE)
    xs, ys = _spread(level.width, side_x), _spread(level.height, side_y)
    return [
        Window(level.index, x, y, min(side_x, level.width - x), min(side_y, level.height - y)) for y in ys for x in xs
    ]


def _spread(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return sorted({int(i) * side for i in np.linspace(0, count - 1, min(count, ACROSS)).round()})


# What others read: for a window's level size and place, pixels or None; and the size of their level 0.

Truth = Callable[[tuple[int, int], Window], Pixels | None]
Other = tuple[tuple[int, int], Truth]


def read_others(path: Path, outcome: Outcome) -> dict[str, list[Pixels | None]]:
    """Return what each other library reads at the windows that were read; none where it cannot.

    Of a file that could not be opened, its first pixels are asked for, to see who can.
    """
    limit_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # their warnings are not ours
    found = {}
    for name, opener in (("tifffile", _tifffile), ("OpenSlide", _openslide), ("Pillow", _pillow)):
        try:
            size, reader = opener(path)
        except Exception:  # noqa: BLE001 (a library that cannot open it says nothing)
            continue
        windows = [(outcome.levels[read.window.level], read.window) for read in outcome.reads]
        found[name] = [_try(reader, *window) for window in windows or [(size, Window(0, 0, 0, 16, 16))]]
    return {name: pixels for name, pixels in found.items() if any(part is not None for part in pixels)}


def _try(reader: Truth, size: tuple[int, int], window: Window) -> Pixels | None:
    try:
        return reader(size, window)
    except Exception:  # noqa: BLE001
        return None


def _openslide(path: Path) -> Other:
    slide = openslide.OpenSlide(path)
    if _samples_are_wide(path):
        raise ValueError("it keeps the upper 8 bits, which is not our rule")

    def read(size: tuple[int, int], window: Window) -> Pixels | None:
        nonlocal slide
        if size not in slide.level_dimensions:
            return None
        index = slide.level_dimensions.index(size)
        scale = slide.level_downsamples[index]
        if scale != round(scale):
            return None  # it would interpolate
        at = window.x * round(scale), window.y * round(scale)
        try:
            pixels = np.asarray(slide.read_region(at, index, (window.width, window.height)))
        except openslide.OpenSlideError:
            slide = openslide.OpenSlide(path)  # its errors stick
            return None
        return pixels[..., :3] if (pixels[..., 3] == 255).all() else None

    return slide.dimensions, read


def _samples_are_wide(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tif:
            return bool(tif.pages.first.dtype != np.uint8)
    except Exception:  # noqa: BLE001 (no TIFF)
        return False


def _tifffile(path: Path) -> Other:
    tif = tifffile.TiffFile(path)
    pages: list[Any] = [page for main in tif.pages for page in (main, *(main.pages or ()))]
    pages = [page for page in pages if page.imagewidth * page.imagelength < 1 << 26]
    whole: dict[int, Pixels | None] = {}

    def read(size: tuple[int, int], window: Window) -> Pixels | None:
        for number, page in enumerate(pages):
            if (page.imagewidth, page.imagelength) == size:
                if number not in whole:
                    whole[number] = _plain(page, pages)
                pixels = whole[number]
                if pixels is not None:
                    return pixels[window.y : window.y + window.height, window.x : window.x + window.width]
        return None

    return (pages[0].imagewidth, pages[0].imagelength), read


def _plain(page: Any, pages: list[Any]) -> Pixels | None:
    """Return the page as RGB, where that takes no rule of ours but the one for more than 8 bits."""
    if page.dtype is None or page.photometric.name not in ("RGB", "YCBCR", "MINISBLACK") or page.extrasamples:
        return None
    values = _interleaved(page)
    if page.dtype.kind in "uf" and page.dtype != np.uint8:
        # The 0.1 and 99.9 percentiles of the coarsest level become 0 and 255.
        coarsest = _interleaved(min(pages, key=lambda page: page.imagewidth * page.imagelength))
        low, high = np.percentile(coarsest.astype(np.float64), [0.1, 99.9])
        values = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    if values.dtype != np.uint8:
        return None
    return np.repeat(values, 3, 2) if values.shape[2] == 1 else values if values.shape[2] == 3 else None


def _interleaved(page: Any) -> NDArray[Any]:
    values: NDArray[Any] = page.asarray()
    return values[..., None] if values.ndim == 2 else np.moveaxis(values, 0, -1) if "S" in page.axes[:1] else values


def _pillow(path: Path) -> Other:
    image = Image.open(path)
    if image.format == "TIFF":
        raise ValueError("tifffile's")
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

    def read(size: tuple[int, int], window: Window) -> Pixels | None:
        if size != (pixels.shape[1], pixels.shape[0]):
            return None
        return pixels[window.y : window.y + window.height, window.x : window.x + window.width]

    return (pixels.shape[1], pixels.shape[0]), read
