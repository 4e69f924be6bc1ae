"""A picture as a list of what is on it, so that pixels (here) and vectors (``vector``) are drawn from one geometry."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from pyrtrav.explain.colours import Colour
from pyrtrav.explain.lettering import PAPER, font

Box = tuple[int, int, int, int]
"""First and last column and row: left, top, right, bottom, in picture or canvas pixels."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A filled rectangle, or an outline inside its box."""

    box: Box
    colour: Colour
    width: int = 0
    """Of the outline, in picture pixels; 0 fills."""
    alpha: int = 255
    """0..255."""


@dataclass(frozen=True, slots=True)
class Text:
    """One line of words."""

    x: int
    y: int
    text: str
    size: int
    """Picture pixels."""
    ink: Colour
    anchor: str = "la"
    """Pillow's: l, m (middle) or r; a (ascender), t (top) or m (middle)."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A canvas that shows the image, what is drawn over it, and what stands around it."""

    size: tuple[int, int]
    place: Box
    """Of the canvas on the picture."""
    layers: tuple[tuple[Rectangle, ...], ...]
    """Over the canvas, in its own pixels; where rectangles of a layer meet, the later one is seen."""
    shapes: tuple[Rectangle, ...]
    texts: tuple[Text, ...]


def paint(drawing: Drawing, canvas: Image.Image) -> Image.Image:
    """Return the drawing as pixels, over a canvas of the size that it has a place for."""
    for rectangles in drawing.layers:
        layer = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
        _draw(ImageDraw.Draw(layer), rectangles)
        canvas = Image.alpha_composite(canvas.convert("RGBA"), layer)
    picture = Image.new("RGB", drawing.size, PAPER)
    picture.paste(canvas.convert("RGB"), drawing.place[:2])
    draw = ImageDraw.Draw(picture)
    _draw(draw, drawing.shapes)
    for text in drawing.texts:
        draw.text((text.x, text.y), text.text, text.ink, font(text.size), anchor=text.anchor)
    return picture


def _draw(draw: ImageDraw.ImageDraw, rectangles: tuple[Rectangle, ...]) -> None:
    for shape in rectangles:
        colour = (*shape.colour, shape.alpha)
        if shape.width:
            draw.rectangle(shape.box, outline=colour, width=shape.width)
        else:
            draw.rectangle(shape.box, fill=colour)
