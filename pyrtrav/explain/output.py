"""Pictures to disk."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, PngImagePlugin

from pyrtrav.errors import ConfigError
from pyrtrav.files import written_whole


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError where the name ends in neither ``.png`` nor ``.pdf``; before anything is drawn."""
    if Path(path).suffix.lower() not in (".png", ".pdf"):
        raise ConfigError(f"{os.fspath(path)}: pictures are PNG or PDF; give a name that ends in .png or .pdf")


def is_pdf(path: str | os.PathLike[str]) -> bool:
    """Whether vectors are asked for."""
    return Path(path).suffix.lower() == ".pdf"


def save_png(image: Image.Image, path: str | os.PathLike[str], title: str) -> None:
    """Write the picture, whole or not at all; ``title`` goes into the file too, unshortened."""
    words = PngImagePlugin.PngInfo()
    # File names that are no text arrive as lone surrogates, which no encoding has.
    words.add_itxt("Title", title.encode("utf-8", "replace").decode("utf-8"))
    with written_whole(path) as beside:
        image.save(beside, format="PNG", pnginfo=words)
