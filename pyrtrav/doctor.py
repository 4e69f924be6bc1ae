"""What this installation can do, and what is wrong with a file: findings as plain data.

Nothing is printed, and nothing here raises for a broken installation or a bad file: what breaks is the
finding. torch is imported only to ask for the device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyrtrav import __version__
from pyrtrav.errors import PyramidError, PyrtravError
from pyrtrav.formats import Format, formats, in_a_line
from pyrtrav.geometry import Region

_BROKEN: Exception | None = None
try:
    from pyrtrav.pyramid.base import Pyramid, shared_cache
    from pyrtrav.pyramid.open import open_pyramid
    from pyrtrav.pyramid.threads import decode_threads
    from pyrtrav.pyramid.tiles import Level
except (ImportError, OSError, ValueError) as _error:
    # A library is missing, or a variable such as PYRTRAV_CACHE_BYTES is no number: what is to be reported.
    _BROKEN = _error

Status = Literal["ok", "warning", "problem"]

PACKAGES = (
    "torch",
    "numpy",
    "tifffile",
    "imagecodecs",
    "simplejpeg",
    "openslide-python",
    "openslide-bin",
    "zarr",
    "pillow",
    "pyvips",
    "safetensors",
)
"""What classifying needs; openslide-bin may be replaced by a library of the system."""

OPTIONAL = {
    "bokeh": "html",
    "obstore": "remote",
    "pyarrow": "arrow",
    "rasterio": "geo",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "transformers": "hf",
}
"""Packages by the extra that installs them."""

SAFE_OPENSLIDE = (4, 0, 1)
"""Older ones write outside memory for a crafted BIF (CVE-2026-48977), and show uninitialised pixels
(CVE-2026-54604)."""

MIN_FREE_BYTES = 1 << 30

MAX_FLAT_PIXELS = 64 << 20
"""A coarsest level above this is not made for a glance."""

MAX_READ_PIXELS = 16 << 20
"""A coarsest level up to this is read whole."""

_NAMED = 3
"""How many damaged tiles a finding names."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    status: Status = "ok"
    advice: str | None = None
    """What to do, where something is to be done."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about the installation."""

    checks: tuple[Check, ...]
    formats: tuple[Format, ...]

    @property
    def status(self) -> Status:
        """The worst of all checks; a format that does not open is a warning."""
        missing: Status = "warning" if any(format.missing for format in self.formats) else "ok"
        return worst([missing, *(check.status for check in self.checks)])


def worst(statuses: Sequence[Status]) -> Status:
    """Return the most serious status; ``ok`` for none."""
    order: tuple[Status, ...] = ("ok", "warning", "problem")
    return max(statuses, key=order.index, default="ok")


def diagnose() -> Report:
    """Return versions, formats, device, threads, memory and disk of this installation."""
    checks = [
        Check("pyrtrav", __version__),
        Check("python", platform.python_version()),
        *(_package(name) for name in PACKAGES),
        *(_optional(name, extra) for name, extra in OPTIONAL.items()),
        _openslide_library(),
        *_torch(),
        *_reading(),
        _temp_folder(),
    ]
    return Report(tuple(checks), tuple(formats()))


# The installation.


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Check:
    version = _version(name)
    if version is not None:
        return Check(name, version)
    if name == "openslide-bin":
        return Check(name, "not installed", "ok", "the system's OpenSlide library is used, if there is one")
    return Check(name, "not installed", "problem", f"pip install {name}")


def _optional(name: str, extra: str) -> Check:
    version = _version(name)
    advice = None if version else f"only where it is needed: pip install 'pyrtrav[{extra}]'"
    return Check(name, version or "not installed", "ok", advice)


def _openslide_library() -> Check:
    name = "OpenSlide library"
    try:
        version = str(importlib.import_module("openslide").__library_version__)
    except Exception as error:  # noqa: BLE001 - a missing library shows in several ways
        advice = "pip install 'openslide-bin>=4.0.1.2'"
        return Check(name, f"cannot be loaded: {in_a_line(error)}", "problem", advice)
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
    if numbers < SAFE_OPENSLIDE:
        return Check(
            name,
            f"{version}, which has two known holes (CVE-2026-48977, CVE-2026-54604)",
            "problem",
            "pip install --upgrade 'openslide-bin>=4.0.1.2', and open no files from strangers until then",
        )
    return Check(name, version)


def _torch() -> Iterator[Check]:
    """The device that models run on, and torch's own threads."""
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - a broken installation fails in many ways
        advice = "pip install torch; without it images can be opened and trees redrawn, but not classified"
        yield Check("device", f"none: torch cannot be imported ({in_a_line(error)})", "problem", advice)
        return
    devices, complaint = _cuda(torch)
    if devices:
        yield Check("device", ", ".join(f"cuda:{number} {name}" for number, name in enumerate(devices)))
    elif complaint:
        yield Check("device", f"cpu: {complaint}", "warning", "repair the GPU's driver to use it")
    else:
        yield Check("device", "cpu")
    yield Check("torch threads", str(torch.get_num_threads()))


def _cuda(torch: Any) -> tuple[list[str], str | None]:
    """The names of the GPUs, and what torch complains of, such as a driver that is too old."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            devices = [str(torch.cuda.get_device_name(number)) for number in range(count)]
        except RuntimeError as error:
            return [], in_a_line(error)
    return devices, str(caught[0].message) if caught else None


def _reading() -> Iterator[Check]:
    """Decoding threads and the tile cache."""
    if _BROKEN is not None:
        advice = "install what is named as missing, and check the variables that begin with PYRTRAV_"
        yield Check("image readers", f"cannot be imported: {in_a_line(_BROKEN)}", "problem", advice)
        return
    try:
        threads = decode_threads()
    except ValueError:
        threads = 0
    if threads < 1:
        value = os.environ.get("PYRTRAV_THREADS")
        advice = "set it to a number of 1 or more, or unset it"
        yield Check("decoding threads", f"PYRTRAV_THREADS is {value!r}", "problem", advice)
    else:
        yield Check("decoding threads", str(threads))
    cache, memory = shared_cache().max_bytes, _memory_bytes()
    found = f"{cache >> 20} MiB"
    if memory is not None and cache > memory // 2:
        advice = "set PYRTRAV_CACHE_BYTES to less than half of it"
        yield Check("tile cache", f"{found} of {memory >> 20} MiB of memory", "warning", advice)
    else:
        yield Check("tile cache", found)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _temp_folder() -> Check:
    advice = "free some space, or set TMPDIR to a folder that has it"
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("temporary folder", in_a_line(error), "problem", advice)
    found = f"{folder}: {free / (1 << 30):.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Check("temporary folder", found, "warning", advice)
    return Check("temporary folder", found)


# One file.


def check_file(path: str | os.PathLike[str]) -> list[Check]:
    """Return what is found when the file is opened, and its coarsest level and a tile of each are read."""
    path = os.fspath(path)
    if _BROKEN is not None:
        return list(_reading())
    try:
        with open_pyramid(path) as pyramid:
            return [*_describe(pyramid), *_read_levels(pyramid)]
    except PyrtravError as error:
        return [Check("open", str(error), "problem")]
    except Exception as error:  # noqa: BLE001 - a reader should have translated it
        advice = "report it, with the file if it may be shown: this should have been a clear message"
        return [Check("open", f"{path}: {in_a_line(error)}", "problem", advice)]


def _describe(pyramid: Pyramid) -> Iterator[Check]:
    yield Check("backend", pyramid.backend)
    levels = ", ".join(f"{level.width} x {level.height}" for level in pyramid.levels)
    coarsest = pyramid.levels[-1]
    pixels = coarsest.width * coarsest.height
    if pixels > MAX_FLAT_PIXELS:
        what = "no pyramid" if len(pyramid.levels) == 1 else "no coarse level"
        found = f"{len(pyramid.levels)}: {levels}; {what}, a glance would decode {pixels / 1e6:.0f} Mpx"
        yield Check("levels", found, "warning", "make a pyramid of it: pyrtrav convert IMAGE OUT.tif")
    else:
        yield Check("levels", f"{len(pyramid.levels)}: {levels}")
    if pyramid.mpp is None:
        advice = "give --mpp where the scale matters, such as with a model that was trained at one"
        yield Check("mpp", "missing: the file does not say how large a pixel is", "warning", advice)
    else:
        yield Check("mpp", f"{pyramid.mpp:.4g} micrometres a pixel")


def _read_levels(pyramid: Pyramid) -> Iterator[Check]:
    for level in pyramid.levels:
        whole = level is pyramid.levels[-1] and level.width * level.height <= MAX_READ_PIXELS
        if whole:
            tiles = [(column, row) for row in range(level.rows) for column in range(level.columns)]
        else:
            tiles = [(level.columns // 2, level.rows // 2)]
        what = f"whole, {len(tiles)} tiles" if whole else "tile in the middle"
        yield _read_tiles(pyramid, level, tiles, what)


def _read_tiles(pyramid: Pyramid, level: Level, tiles: Sequence[tuple[int, int]], what: str) -> Check:
    errors: dict[str, None] = {}
    for column, row in tiles:
        try:
            pyramid.read(*_tile_region(pyramid, level, column, row))
        except PyramidError as error:
            errors[str(error).removeprefix(f"{pyramid.path}: ")] = None
    name = f"level {level.index}"
    if not errors:
        return Check(name, f"{what}: read")
    named = "; ".join(list(errors)[:_NAMED])
    more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    advice = "copy the file again from where it came; a tile that is damaged there too is lost"
    return Check(name, f"{what}: {len(errors)} damaged: {named}{more}", "problem", advice)


def _tile_region(pyramid: Pyramid, level: Level, column: int, row: int) -> tuple[Region, tuple[int, int]]:
    """One stored tile as a region, and its size in the level's pixels, so that this level is read."""
    x, y = column * level.tile_width, row * level.tile_height
    width, height = min(level.tile_width, level.width - x), min(level.tile_height, level.height - y)
    scale_x, scale_y = pyramid.width / level.width, pyramid.height / level.height
    return Region(x * scale_x, y * scale_y, width * scale_x, height * scale_y), (width, height)
