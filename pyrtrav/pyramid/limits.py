"""What the process holds and where its limits are, each moved by a variable of the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pyrtrav.errors import ConfigError

_DEFAULTS = {
    "PYRTRAV_THREADS": 0,
    "PYRTRAV_CACHE_BYTES": 256 << 20,
    "PYRTRAV_OPEN_IMAGES": 256,
    "PYRTRAV_MAX_PIXELS": 1 << 32,
    "PYRTRAV_WHOLE_PIXELS": 64_000_000,
    "PYRTRAV_CONVERT_BYTES": 2 << 30,
    "PYRTRAV_CACHE_DIR_BYTES": 20 << 30,
    "PYRTRAV_DISK_CACHE_BYTES": 0,
}


def max_pixels() -> int:
    """``PYRTRAV_MAX_PIXELS``, else 2^32: what a flat image may declare (a JPEG cannot declare more)."""
    return _number("PYRTRAV_MAX_PIXELS")


def whole_pixels() -> int:
    """``PYRTRAV_WHOLE_PIXELS``, else 64,000,000: up to this a flat image is decoded whole into memory."""
    return _number("PYRTRAV_WHOLE_PIXELS")


def convert_bytes() -> int:
    """``PYRTRAV_CONVERT_BYTES``, else 2 GiB: what decoding a file that cannot be decoded in rows may take."""
    return _number("PYRTRAV_CONVERT_BYTES")


def cache_dir_bytes() -> int:
    """``PYRTRAV_CACHE_DIR_BYTES``, else 20 GiB: what converted pyramids may take on the disk together."""
    return _number("PYRTRAV_CACHE_DIR_BYTES")


def cache_dir() -> Path:
    """Where converted pyramids, and tiles if asked for, are kept: ``PYRTRAV_CACHE_DIR``, else the user's cache."""
    given = os.environ.get("PYRTRAV_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "pyrtrav"


def disk_cache_bytes() -> int:
    """``PYRTRAV_DISK_CACHE_BYTES``, else 0, none: what decoded tiles of slow images may take on the disk together."""
    return _number("PYRTRAV_DISK_CACHE_BYTES", least=0)


def threads() -> int:
    """``PYRTRAV_THREADS``, else 0: as many as there are processors."""
    return _number("PYRTRAV_THREADS", least=0)


def cache_bytes() -> int:
    """``PYRTRAV_CACHE_BYTES``, else 256 MiB: about 1,300 decoded tiles of 256 px; 0 keeps none."""
    return _number("PYRTRAV_CACHE_BYTES", least=0)


def open_images() -> int:
    """``PYRTRAV_OPEN_IMAGES``, else 256: images that hold their files open."""
    return _number("PYRTRAV_OPEN_IMAGES")


def _number(name: str, least: int = 1) -> int:
    """
    Raises:
        ConfigError: the variable is no whole number of ``least`` or more.
    """
    said = os.environ.get(name, "")
    try:
        value = int(said or _DEFAULTS[name])
    except ValueError:
        value = -1
    if value < least:
        raise ConfigError(f"{name} is a whole number of {least} or more, got {said!r}")
    return value
