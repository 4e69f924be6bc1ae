"""Which formats open here: each codec is tried on a few pixels, so that a missing library shows."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A format, the backend that reads it, and what is missing for it: None where it opens."""

    name: str
    backend: str
    missing: str | None


def formats() -> Iterator[Format]:
    """Yield every format with what is missing for it, found by trying."""
    for name, backend, probe in _PROBES:
        try:
            probe()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            yield Format(name, backend, in_a_line(error))
        else:
            yield Format(name, backend, None)


def _jpeg() -> None:
    numpy, simplejpeg = importlib.import_module("numpy"), importlib.import_module("simplejpeg")
    simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(numpy.zeros((16, 16, 3), numpy.uint8)))


def _image_codec(name: str) -> Callable[[], None]:
    """Encodes and decodes a small image with a codec of imagecodecs."""

    def probe() -> None:
        numpy, codecs = importlib.import_module("numpy"), importlib.import_module("imagecodecs")
        pixels = numpy.zeros((16, 16, 3), numpy.uint8)
        getattr(codecs, f"{name}_decode")(getattr(codecs, f"{name}_encode")(pixels))

    return probe


def _byte_codec(name: str) -> Callable[[], None]:
    def probe() -> None:
        codecs = importlib.import_module("imagecodecs")
        getattr(codecs, f"{name}_decode")(getattr(codecs, f"{name}_encode")(bytes(64)))

    return probe


def _pillow(format: str) -> Callable[[], None]:
    def probe() -> None:
        image = importlib.import_module("PIL.Image")
        file = io.BytesIO()
        image.new("RGB", (16, 16)).save(file, format)
        image.open(file).load()

    return probe


def _openslide() -> None:
    importlib.import_module("openslide")


def _zarr() -> None:
    importlib.import_module("zarr")
    importlib.import_module("numcodecs.blosc")


def _vips() -> None:
    vips = importlib.import_module("pyvips")
    for loader in ("jpegload", "pngload"):
        if not vips.type_find("VipsOperation", loader):
            raise ImportError(f"libvips without {loader}: pip install 'pyvips[binary]'")


_PROBES: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("TIFF, SVS, OME-TIFF: JPEG", "tiff", _jpeg),
    ("TIFF, SVS: JPEG 2000", "tiff", _image_codec("jpeg2k")),
    ("TIFF: JPEG XL", "tiff", _image_codec("jpegxl")),
    ("TIFF: WebP", "tiff", _image_codec("webp")),
    ("TIFF: LZW", "tiff", _byte_codec("lzw")),
    ("TIFF: Deflate", "tiff", _byte_codec("zlib")),
    ("TIFF: ZSTD", "tiff", _byte_codec("zstd")),
    ("NDPI, MRXS, SCN, BIF, CZI, DICOM slides", "slide", _openslide),
    ("OME-Zarr", "omezarr", _zarr),
    ("PNG", "raster", _pillow("PNG")),
    ("JPEG", "raster", _pillow("JPEG")),
    ("WebP", "raster", _pillow("WEBP")),
    ("JPEG 2000", "raster", _pillow("JPEG2000")),
    ("AVIF", "raster", _pillow("AVIF")),
    ("large PNG, JPEG and striped TIFF, by conversion", "raster", _vips),
)


def in_a_line(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
