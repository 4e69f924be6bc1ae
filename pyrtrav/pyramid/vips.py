"""A flat image to a tiled pyramid: a BigTIFF in lossless tiles, by libvips, in a process of its own.

Measured on 67 Mpx of tissue (a JPEG of 10 MB), two cores: deflate at level 1 takes 3.3 s and 186 MB; JPEG at
quality 95 takes 1.3 s and 79 MB, but changes 28 % of the samples, by up to 4. Lossless it is: a model must not
see other pixels because a file was large.

The first level holds the samples that the readers of small files give: libvips
decodes only what it decodes to the same ones (JPEG, PNG), row by row. The rest comes from Pillow, which needs
the memory of the whole image, or, strip by strip, from our own reader of TIFFs: libvips would read a damaged
strip as gray and a compression that it lacks as black.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.pyramid.child import end_with_parent
from pyrtrav.pyramid.flat import Header, check_chunks, check_memory, check_size, decode_whole, read_header
from pyrtrav.pyramid.limits import max_pixels
from pyrtrav.pyramid.pixels import Samples, to_uint8
from pyrtrav.pyramid.threads import decode_threads
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiff_levels import is_tiff

TILE = 256
"""Side of the tiles that are written."""

Report = Callable[[str, float], None]
"""(what is being done, share of it that is done, 0..1)"""

_FORMATS = {
    "uint8": "uchar", "int8": "char", "uint16": "ushort", "int16": "short", "uint32": "uint", "int32": "int",
    "float32": "float", "float64": "double",
}  # fmt: skip
_TURNS = {
    2: lambda image: image.fliphor(),
    3: lambda image: image.rot180(),
    4: lambda image: image.flipver(),
    5: lambda image: image.rot90().fliphor(),
    6: lambda image: image.rot90(),
    7: lambda image: image.rot270().fliphor(),
    8: lambda image: image.rot270(),
}
"""What undoes an EXIF orientation."""


# Files beside what is written: rows in a plain file, which libvips reads in any order.
_STAGES = ".raw", ".v"


def tiled_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return (width, height) of the levels that are written: halves, rounded up, down to one tile."""
    stored = [-(-side // TILE) * TILE for side in (width, height)]
    sizes = [(width, height)]
    while max(stored) > TILE:
        stored = [max(1, side // 2) for side in stored]
        shrink = 1 << len(sizes)
        sizes.append((min(-(-width // shrink), stored[0]), min(-(-height // shrink), stored[1])))
    return sizes


def converted_samples(samples: Samples) -> Samples:
    """What the samples of a TIFF become: fewer than 8 bits are stretched to 8."""
    if samples.dtype == np.bool_ or (samples.dtype.itemsize == 1 and samples.window is not None):
        return Samples(samples.colors, np.dtype(np.uint8), samples.alpha)
    return samples


def write_pyramid_apart(source: str, out: str, *, compare: bool = False, report: Report | None = None) -> None:
    """Do ``write_pyramid`` in a process of its own.

    It gives its memory back, can be interrupted, and takes nobody with it when a decoder crashes.

    Raises:
        CorruptImageError: the source is damaged.
        UnsupportedFormatError: it cannot be converted.
        PyramidError: the disk is full, or libvips is missing.
    """
    call = "import sys; from pyrtrav.pyramid.vips import main; sys.exit(main(*sys.argv[1:]))"
    # The other end is closed when this process ends, however it does; then that one ends too.
    alive, held = os.pipe()
    said: dict[str, Any] = {}
    with tempfile.TemporaryFile() as complaints:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", call, source, out, *(["compare"] if compare else [])],
                stdin=alive,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={"VIPS_CONCURRENCY": str(decode_threads()), **os.environ},
            )
            with child:
                try:
                    said = _listen(child, report)
                except BaseException:
                    child.kill()
                    raise
        finally:
            os.close(alive)
            os.close(held)
            for stage in _STAGES:
                Path(out + stage).unlink(missing_ok=True)
        if child.returncode == 0:
            return
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:] or ["without a word"]
    kind = said.get("kind", "failed")
    reason = said.get("reason", f"the converter ended with {child.returncode}: {last[0]}")
    if kind == "corrupt":
        raise CorruptImageError(source, reason)
    if kind == "unsupported":
        raise UnsupportedFormatError(f"{source}: {reason}")
    raise PyramidError(f"{source}: it cannot be converted: {reason}")


def _listen(child: subprocess.Popen[bytes], report: Report | None) -> dict[str, Any]:
    """Pass on how far it is; return what it says of a failure."""
    assert child.stdout is not None
    for line in child.stdout:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if "kind" in said:
            return said
        if report is not None:
            report(said["doing"], said["share"])
    return {}


def write_pyramid(source: str, out: str, *, compare: bool = False, report: Report | None = None) -> None:
    """Write ``source``, a flat image or a TIFF, to ``out`` as a tiled pyramid.

    Until it is written, plain files whose names begin with ``out`` may stand beside it. With ``compare`` what was
    written is read again, by our own reader, and compared with the source, sample by sample.

    Raises:
        PyramidError: it cannot be decoded, or not be written.
    """
    import pyvips

    try:
        with _decoded(source, out) as (image, samples, mpp):
            _save(image, samples, mpp, out, report)
        if compare:
            with _decoded(source, out) as (image, samples, _):
                _compare(image, samples, out, report)
    except pyvips.Error as error:
        text = " ".join(str(error).split()).removeprefix("unable to call tiffsave ")
        if "target output" in text or "write" in text.lower() or "No space" in text:
            raise PyramidError(text) from error
        raise CorruptImageError(source, text) from error


@contextmanager
def _decoded(source: str, out: str) -> Iterator[tuple[Any, Samples, float | None]]:
    """The image of libvips that gives the source's samples once, from the top; what they are, and its mpp."""
    with open(source, "rb") as file:
        head = file.read(16)
    if is_tiff(head) and _is_read_in_strips(source):
        with _from_tiff(source, Path(f"{out}.raw")) as found:
            yield found
        return
    header = read_header(source)
    check_size(source, header)
    check_memory(source, header)
    with _from_flat(source, header, Path(f"{out}.v")) as image:
        yield image, header.samples, None


def _compare(image: Any, samples: Samples, out: str, report: Report | None) -> None:
    with TiffPyramid(out, window=(0, 1)) as written:
        _take_all_planes(written)
        level = written.levels[0]
        for row in range(level.rows):
            band = row_of_tiles(written, row)
            top, height = row * level.tile_height, len(band)
            wanted = image.crop(0, top, image.width, height).numpy().reshape(band.shape)
            if not np.array_equal(band, wanted, equal_nan=samples.dtype.kind == "f"):
                raise PyramidError(f"{out}: what was written differs from the image in rows {top} to {top + height}")
            if report is not None:
                report("comparing", (row + 1) / level.rows)


def _is_read_in_strips(source: str) -> bool:
    try:
        TiffPyramid(source, window=(0, 1)).close()
    except UnsupportedFormatError:
        return False  # strips too large for it: Pillow may have the memory
    return True


@contextmanager
def _from_flat(source: str, header: Header, stage: Path) -> Iterator[Any]:
    import pyvips

    if not header.by_vips:
        samples = decode_whole(source, header)
        height, width, bands = samples.shape
        yield pyvips.Image.new_from_memory(
            np.ascontiguousarray(samples).data, width, height, bands, _FORMATS[str(samples.dtype)]
        )
        return
    # Warnings of the JPEG decoder are damaged pixels; those of the PNG decoder are damaged comments.
    if header.format == "PNG":
        check_chunks(source)
        image = pyvips.Image.pngload(source, access="sequential", fail_on="error", unlimited=True)
    else:
        image = pyvips.Image.jpegload(source, access="sequential", fail_on="warning")
    if (image.width, image.height) != header.size:
        raise CorruptImageError(source, "its size is not what its header says")
    image = _as_declared(image, header)
    if header.orientation == 1:
        yield image
        return
    try:
        image.vipssave(str(stage))  # turning needs rows in another order than they are decoded
        yield _TURNS[header.orientation](pyvips.Image.vipsload(str(stage)))
    finally:
        stage.unlink(missing_ok=True)


def _as_declared(image: Any, header: Header) -> Any:
    """The samples that Pillow gives: it cuts 16-bit colours to 8, and has fewer kinds of bands."""
    samples = header.samples
    if image.format == "ushort" and samples.dtype == np.uint8:
        image = (image >> 8).cast("uchar")
    elif image.format != _FORMATS[str(samples.dtype)]:
        image = image.cast(_FORMATS[str(samples.dtype)])
    alpha = None
    if image.bands in (2, 4):
        alpha, image = image[image.bands - 1], image.extract_band(0, n=image.bands - 1)
    if samples.colors == 3 and image.bands == 1:
        image = image.bandjoin([image, image])
    if samples.alpha == "none":
        return image
    return image.bandjoin(255 if alpha is None else alpha)


@contextmanager
def _from_tiff(source: str, stage: Path) -> Iterator[tuple[Any, Samples, float | None]]:
    """The first level, decoded strip by strip into a plain file, which libvips reads row by row."""
    import pyvips

    with TiffPyramid(source, window=(0, 1)) as pyramid:
        if pyramid.width * pyramid.height > max_pixels():
            raise UnsupportedFormatError(
                f"{source}: it declares {pyramid.width:,} x {pyramid.height:,} pixels (the limit is "
                f"{max_pixels():,}); if you trust the file, set PYRTRAV_MAX_PIXELS to more"
            )
        _take_all_planes(pyramid)
        samples = converted_samples(pyramid.samples)
        bands = samples.colors + (samples.alpha != "none")
        if str(samples.dtype) not in _FORMATS:
            raise UnsupportedFormatError(f"{source}: samples of type {samples.dtype} cannot be converted")
        try:
            with stage.open("wb") as file:
                for row in range(pyramid.levels[0].rows):
                    band = row_of_tiles(pyramid, row)
                    stretched = band if samples == pyramid.samples else to_uint8(band, pyramid.samples.window)
                    file.write(stretched.tobytes())
            size = pyramid.width, pyramid.height
            kind = _FORMATS[str(samples.dtype)]
            image = pyvips.Image.rawload(str(stage), *size, bands, format=kind, access="sequential")
            yield image, samples, pyramid.mpp
        finally:
            stage.unlink(missing_ok=True)


def _take_all_planes(pyramid: TiffPyramid) -> None:
    """Not only the channels that a model would see."""
    pyramid._planes = tuple(range(len(pyramid._directories[0].pages)))


def row_of_tiles(pyramid: TiffPyramid, row: int, level: int = 0) -> NDArray[Any]:
    """Return the samples (h, w, n) of one row of tiles, or of one strip, without what lies beside the image.

    Raises:
        UnsupportedFormatError: a tile is left out.
    """
    stored = pyramid.levels[level]
    height = min(stored.tile_height, stored.height - row * stored.tile_height)
    tiles = []
    for column in range(stored.columns):
        width = min(stored.tile_width, stored.width - column * stored.tile_width)
        raw = pyramid._raw_tile((level, column, row))
        if raw is None:
            raise UnsupportedFormatError(f"{pyramid.path}: it leaves out tiles, which a converted image cannot")
        tiles.append(raw.samples[:height, :width])
    return np.concatenate(tiles, axis=1)


def _save(image: Any, samples: Samples, mpp: float | None, out: str, report: Report | None) -> None:
    width, height = image.width, image.height
    deep = samples.dtype.itemsize > 1
    if samples.colors == 3:
        kind = "rgb16" if deep else "srgb"
    elif samples.colors == 1:
        kind = "grey16" if deep else "b-w"
    else:
        kind = "multiband"
    per_mm = 1000 / mpp if mpp else 1.0
    image = image.copy(interpretation=kind, xres=per_mm, yres=per_mm)
    # With edges repeated up to whole tiles, every level is whole halves; the true sizes are written afterwards.
    full = [-(-side // TILE) * TILE for side in (width, height)]
    whole = image.embed(0, 0, *full, extend="copy")
    if report is not None:
        whole.set_progress(True)
        whole.signal_connect("eval", lambda _, progress: report("writing", progress.percent / 100))
    whole.tiffsave(
        out,
        tile=True,
        tile_width=TILE,
        tile_height=TILE,
        pyramid=True,
        bigtiff=True,
        compression="deflate",
        level=1,
        predictor="float" if samples.dtype.kind == "f" else "horizontal",
        premultiply=False,
        resunit="cm",
        keep="icc",
    )
    with tifffile.TiffFile(out, mode="r+") as tif:
        sizes = tiled_sizes(width, height)
        if len(tif.pages) != len(sizes):
            raise PyramidError(f"{out}: {len(tif.pages)} levels were written instead of {len(sizes)}")
        pages: list[Any] = list(tif.pages)
        for page, size in zip(pages, sizes, strict=True):
            for name, value in zip(("ImageWidth", "ImageLength"), size, strict=True):
                page.tags[name].overwrite(value)


class _Progress:
    """Prints how far it is, as JSON, at every hundredth."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, doing: str, share: float) -> None:
        now = doing, int(100 * share)
        if now != self._last:
            self._last = now
            print(json.dumps({"doing": doing, "share": share}), flush=True)


def main(source: str, out: str, compare: str = "") -> int:
    """Convert; on failure print kind and reason as JSON and return 1. Ends when standard input does."""
    end_with_parent()
    try:
        write_pyramid(source, out, compare=bool(compare), report=_Progress())
    except CorruptImageError as error:
        kind, reason = "corrupt", error.reason
    except UnsupportedFormatError as error:
        kind, reason = "unsupported", str(error).removeprefix(f"{source}: ")
    except (PyramidError, OSError, MemoryError) as error:
        kind, reason = "failed", str(error) or type(error).__name__
    except ImportError as error:
        kind, reason = "failed", f"pyvips cannot be imported ({error}); install it: pip install 'pyvips[binary]'"
    else:
        return 0
    print(json.dumps({"kind": kind, "reason": reason}))
    return 1
