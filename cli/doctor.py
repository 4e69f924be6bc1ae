"""``pyrtrav doctor``: what is wrong with an installation or a file, and what to do."""

from pathlib import Path
from typing import Annotated

import typer

from pyrtrav.cli import options as o


def doctor(
    image: Annotated[Path | None, typer.Argument(help="Also examine this image.", show_default=False)] = None,
    as_json: o.Json = False,
) -> None:
    """Show versions, formats that open, device and threads; exits with 1 where something is broken."""
    raise NotImplementedError
