"""How charts are drawn: by matplotlib without its global state, no window system, no user's style."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyrtrav.explain.output import is_pdf
from pyrtrav.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#1c1c1c", "#606060"

_DPI = 150


@contextmanager
def style() -> Iterator[None]:
    """Draw in the block as charts of ours look."""
    # Takes a second to import, and only who draws needs it.
    from matplotlib import style

    # Dollar signs in names of classes and files are no formulas.
    own = {"font.size": 11, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    with style.context(["default", {**own, "text.color": INK, "axes.labelcolor": INK}]):
        yield


def save_chart(figure: Figure, path: str | os.PathLike[str], title: str) -> None:
    """Write a figure as PNG, or PDF by its name, whole or not at all."""
    with written_whole(path) as beside:
        figure.savefig(beside, format="pdf" if is_pdf(path) else "png", dpi=_DPI, metadata={"Title": title})
