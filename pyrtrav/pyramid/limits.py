"""Limits on flat images, each moved by a variable of the environment."""

from __future__ import annotations

import os

from pyrtrav.errors import ConfigError

_DEFAULTS = {
    "PYRTRAV_MAX_PIXELS": 1 << 32,
    "PYRTRAV_WHOLE_PIXELS": 64_000_000,
    "PYRTRAV_CONVERT_BYTES": 2 << 30,
    "PYRTRAV_CACHE_DIR_BYTES": 20 << 30,
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


def _number(name: str) -> int:
    """
    Raises:
        ConfigError: the variable is no whole number of 1 or more.
    """
    said = os.environ.get(name, "")
    try:
        value = int(said or _DEFAULTS[name])
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{name} is a whole number of 1 or more, got {said!r}")
    return value
