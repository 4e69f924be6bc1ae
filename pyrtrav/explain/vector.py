"""A drawing as PDF: outlines, words and colour bar as vectors over the thumbnail, by matplotlib.

The file is a function of the drawing: it holds no date, and its font is the one of the pixel pictures.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pyrtrav.explain.drawing import Box, Drawing, Rectangle, Text
from pyrtrav.explain.lettering import font
from pyrtrav.files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PIXELS_AN_INCH = 150
"""Of the drawing; the thumbnail may have more (``SHARPNESS``)."""

SHARPNESS = 2
"""Thumbnail pixels a drawing pixel along each side: 300 an inch, as journals ask."""

_POINTS = 72 / PIXELS_AN_INCH


def save_pdf(drawing: Drawing, canvas: Image.Image, path: str | os.PathLike[str], title: str) -> None:
    """Write the drawing over a canvas of any resolution as one page, whole or not at all."""
    # Takes a second to import, and only who asks for PDF needs it.
    from matplotlib import style
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    own = {"text.parse_math": False, "pdf.fonttype": 42, "image.composite_image": False, "path.simplify": False}
    words = {"Title": title.encode("utf-8", "replace").decode("utf-8"), "Creator": "pyrtrav", "CreationDate": None}
    width, height = drawing.size
    with style.context(["default", own]), tempfile.TemporaryDirectory() as folder, written_whole(path) as beside:
        figure = Figure(figsize=(width / PIXELS_AN_INCH, height / PIXELS_AN_INCH), facecolor="white")
        FigureCanvasPdf(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        left, top, right, bottom = drawing.place
        axes.imshow(canvas, extent=(left, right + 1, bottom + 1, top), interpolation="none", aspect="auto")
        axes.set(xlim=(0, width), ylim=(height, 0))
        for layer in drawing.layers:
            for shape in layer:
                _add_rectangle(axes, shape, drawing.place)
        for shape in drawing.shapes:
            _add_rectangle(axes, shape, (0, 0, width - 1, height - 1))
        face = Path(folder) / "face.ttf"
        face.write_bytes(font(24).font_bytes)
        for text in drawing.texts:
            _add_text(axes, text, face)
        figure.savefig(beside, format="pdf", metadata=words)


def _add_rectangle(axes: Axes, shape: Rectangle, place: Box) -> None:
    from matplotlib.patches import Rectangle as Patch

    left, top, right, bottom = shape.box
    # Pillow draws an outline inwards, PDF along its middle.
    inset = shape.width / 2
    colour = tuple(part / 255 for part in shape.colour)
    patch = Patch(
        (place[0] + left + inset, place[1] + top + inset),
        right + 1 - left - shape.width,
        bottom + 1 - top - shape.width,
        fill=not shape.width,
        facecolor=colour,
        edgecolor=colour if shape.width else "none",
        linewidth=shape.width * _POINTS,
        alpha=shape.alpha / 255,
        joinstyle="miter",
    )
    # What reaches a pixel beyond the canvas, such as a casing, is cut off as Pillow does.
    patch.set_clip_path(
        Patch((place[0], place[1]), place[2] + 1 - place[0], place[3] + 1 - place[1], transform=axes.transData)
    )
    axes.add_artist(patch)


def _add_text(axes: Axes, text: Text, face: Path) -> None:
    metrics = font(text.size)
    ascent, descent = metrics.getmetrics()
    above = {
        "a": ascent,
        "t": -metrics.getbbox(text.text, anchor="ls")[1],
        "m": (ascent - descent) / 2,
    }[text.anchor[1]]
    axes.text(
        text.x,
        text.y + above,
        text.text,
        color=tuple(part / 255 for part in text.ink),
        font=face,
        fontsize=text.size * _POINTS,
        horizontalalignment={"l": "left", "m": "center", "r": "right"}[text.anchor[0]],
        verticalalignment="baseline",
    )
