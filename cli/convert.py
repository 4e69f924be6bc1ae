"""``pyrtrav convert``: a tiled pyramid from a flat image."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    image: Annotated[Path, typer.Argument(help="A flat image: PNG, JPEG, striped TIFF, ...", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The pyramid to write, .tif.", show_default=False)],
) -> None:
    """Write a flat image as a tiled pyramid, losslessly and in bounded memory; print its name.

    Example: pyrtrav convert scene.png scene.tif
    """
    from pyrtrav.pyramid.convert import convert as write

    write(image, out)
    typer.echo(out)
