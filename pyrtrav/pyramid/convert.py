"""Convert a flat image to a tiled pyramid, as the readers do by themselves with large ones."""

from __future__ import annotations

import os
from pathlib import Path

from pyrtrav.errors import ConfigError, UnsupportedFormatError
from pyrtrav.files import folder_written_whole, remove_torn, written_whole
from pyrtrav.lock import WriterLock
from pyrtrav.pyramid.open import candidates, read_head
from pyrtrav.pyramid.source import is_url
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.vips import Report, write_pyramid_apart
from pyrtrav.pyramid.write_omezarr import write_omezarr

_TIFF, _ZARR = (".tif", ".tiff"), (".zarr",)


def convert(image: str | os.PathLike[str], out: str | os.PathLike[str], *, report: Report | None = None) -> None:
    """Write a flat image (PNG, JPEG, ..., or a TIFF without levels) as a tiled pyramid, losslessly.

    What was written is opened again and compared with the image, sample by sample, before it takes its place.

    Args:
        image: its first level becomes the pyramid's; EXIF orientation is applied.
        out: a name that ends in .tif or .tiff (BigTIFF), or in .zarr (OME-Zarr 0.4, a folder that must not exist); it
            is written beside and takes its place at the end.
        report: is told what is being done, and what share of it is done.

    Raises:
        ConfigError: ``out`` is no name of either, is the image itself, or cannot be written now.
        CorruptImageError: the image is damaged.
        UnsupportedFormatError: it is no flat image, too large, or needs too much memory.
        PyramidError: it is missing, or the disk is full.
    """
    source, target = os.fspath(image), Path(out)
    suffix = target.suffix.lower()
    if suffix not in _TIFF + _ZARR:
        raise ConfigError(
            f"{target}: pyramids are written as TIFF or OME-Zarr; name one that ends in .tif or .ome.zarr"
        )
    if target.exists() and os.path.exists(source) and os.path.samefile(source, target):
        raise ConfigError(f"{target}: would overwrite the image; name another file")
    if is_url(source):
        raise ConfigError(f"{source}: is a URL; download it first, only files are converted")
    if candidates(source, read_head(source))[0] not in ("tiff", "raster"):
        raise UnsupportedFormatError(f"{source}: is a slide or a zarr image, which is a pyramid already")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: cannot be written: its folder does not exist; make it first")
    lock = WriterLock(target)
    try:
        remove_torn(target)
        (_write_tiff if suffix in _TIFF else _write_zarr)(source, target, report)
    finally:
        lock.release()


def _write_tiff(source: str, target: Path, report: Report | None) -> None:
    with written_whole(target) as beside:
        write_pyramid_apart(source, os.fspath(beside), compare=True, report=report)


def _write_zarr(source: str, target: Path, report: Report | None) -> None:
    with folder_written_whole(target) as folder:
        # The levels are made by libvips, in a TIFF that is removed again.
        levels = folder.with_name(f"{folder.name}.tif")
        try:
            write_pyramid_apart(source, os.fspath(levels), compare=True, report=report)
            with TiffPyramid(levels, window=(0, 1)) as pyramid:
                if pyramid.samples.alpha != "none":
                    raise UnsupportedFormatError(
                        f"{source}: has transparent pixels, which OME-Zarr has no word for; write it as .tif"
                    )
                write_omezarr(pyramid, folder, Path(source).name, report or (lambda doing, share: None))
        finally:
            levels.unlink(missing_ok=True)
