"""``pyrtrav convert``: a tiled pyramid from a flat image."""

from pathlib import Path
from typing import Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import shares
from pyrtrav.stopping import stopped_by_signals


@stopped_by_signals()
def convert(
    image: Annotated[Path, typer.Argument(help="A flat image: PNG, JPEG, striped TIFF, ...", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The pyramid to write: .tif or .ome.zarr.", show_default=False)],
    quiet: o.Quiet = False,
) -> None:
    """Write a flat image as a tiled pyramid, losslessly and in bounded memory, and compare it; print its name.

    Example: pyrtrav convert scene.png scene.tif
    """
    from pyrtrav.pyramid.convert import convert as write

    with shares(quiet) as report:
        write(image, out, report=report)
    typer.echo(out)
