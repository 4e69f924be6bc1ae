"""Convert a flat image to a tiled pyramid, as the readers do by themselves with large ones."""

from __future__ import annotations

import os
from pathlib import Path

from pyrtrav.errors import ConfigError, UnsupportedFormatError
from pyrtrav.files import written_whole
from pyrtrav.pyramid.open import candidates, read_head
from pyrtrav.pyramid.source import is_url
from pyrtrav.pyramid.vips import write_pyramid_apart


def convert(image: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write a flat image (PNG, JPEG, ..., or a TIFF without levels) as a tiled pyramid, losslessly.

    Args:
        image: its first level becomes the pyramid's; EXIF orientation is applied.
        out: a name that ends in .tif or .tiff; it is written beside and takes its place at the end.

    Raises:
        ConfigError: ``out`` is no TIFF's name, is the image itself, or cannot be written.
        CorruptImageError: the image is damaged.
        UnsupportedFormatError: it is no flat image, too large, or needs too much memory.
        PyramidError: it is missing, or the disk is full.
    """
    source, target = os.fspath(image), Path(out)
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{target}: only pyramids in TIFF are written; name a file that ends in .tif")
    if target.exists() and os.path.exists(source) and os.path.samefile(source, target):
        raise ConfigError(f"{target}: would overwrite the image; name another file")
    if is_url(source):
        raise ConfigError(f"{source}: is a URL; download it first, only files are converted")
    if candidates(source, read_head(source))[0] not in ("tiff", "raster"):
        raise UnsupportedFormatError(f"{source}: is a slide or a zarr image, which is a pyramid already")
    with written_whole(target) as beside:
        write_pyramid_apart(source, os.fspath(beside))
