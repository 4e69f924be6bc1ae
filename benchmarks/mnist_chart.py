"""Figure 4 of the top-down paper: accuracy against multiply-accumulates, a panel for each variant and pair."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.mnist_images import VARIANTS

Row = dict[str, Any]

COLOURS = {14: (70, 110, 200), 28: (40, 150, 70), 56: (205, 60, 50)}
INK, PALE, GRID = (20, 20, 20), (110, 110, 110), (225, 225, 225)
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP = 470, 330, 90, 100, 80
RADIUS = 7


def draw_figure(rows: list[Row]) -> Image.Image:
    """Return the figure: of models trained in both ways the better one, as in the paper."""
    width = LEFT + 3 * PANEL_WIDTH + 2 * GAP + 40
    height = TOP + 3 * PANEL_HEIGHT + 2 * GAP + 80
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 18), "Accuracy against computation on three MNIST variants", INK, ImageFont.load_default(28))
    _legend(draw, LEFT, 66)
    for line, variant in enumerate(VARIANTS):
        for column, pair in enumerate((3, 2, 1)):
            box = LEFT + column * (PANEL_WIDTH + GAP), TOP + line * (PANEL_HEIGHT + GAP)
            own = [row for row in rows if row["variant"] == variant and row["pair"] == pair]
            _panel(draw, box, f"{variant}: M{pair} and BL{pair}", _best(own))
    return image


def _best(rows: list[Row]) -> list[Row]:
    best: dict[tuple[object, ...], Row] = {}
    for row in rows:
        kind = row["model"], row["resolution"], row["c_t"]
        if kind not in best or row["accuracy"] > best[kind]["accuracy"]:
            best[kind] = row
    return list(best.values())


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    font = ImageFont.load_default(17)
    for resolution, colour in COLOURS.items():
        _marker(draw, x, y, "M", colour)
        _marker(draw, x + 20, y, "BL", colour)
        draw.text((x + 38, y), f"{resolution} px", INK, font, anchor="lm")
        x += 120
    draw.text(
        (x + 20, y), "circles: top-down, with the cells that it attends; squares: baseline", PALE, font, anchor="lm"
    )


def _panel(draw: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, rows: list[Row]) -> None:
    left, top = corner
    font, small = ImageFont.load_default(18), ImageFont.load_default(15)
    draw.text((left, top), title, INK, font)
    top += 30
    right, bottom = left + PANEL_WIDTH, top + PANEL_HEIGHT - 50
    draw.rectangle((left, top, right, bottom), outline=PALE)
    draw.text(
        ((left + right) // 2, bottom + 36), "multiply-accumulates an image, in millions", PALE, small, anchor="mm"
    )
    if not rows:
        draw.text(((left + right) // 2, (top + bottom) // 2), "not trained yet", PALE, font, anchor="mm")
        return
    low_x, high_x = _decades([row["macs"] / 1e6 for row in rows])
    low_y, step = _span([100 * row["accuracy"] for row in rows])
    low_y = min(low_y, 100 - 5 * step)

    def at(row: Row) -> tuple[int, int]:
        share = (math.log10(row["macs"] / 1e6) - low_x) / (high_x - low_x)
        return round(left + share * PANEL_WIDTH), round(
            bottom - (100 * row["accuracy"] - low_y) / (5 * step) * (bottom - top)
        )

    for tick in range(6):
        y = round(bottom - tick / 5 * (bottom - top))
        draw.line((left + 1, y, right - 1, y), GRID)
        draw.text((left - 8, y), f"{low_y + tick * step:g} %", INK, small, anchor="rm")
    for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        if low_x <= math.log10(value) <= high_x:
            x = round(left + (math.log10(value) - low_x) / (high_x - low_x) * PANEL_WIDTH)
            draw.line((x, bottom - 5, x, bottom), PALE)
            draw.text((x, bottom + 14), f"{value:g}", INK, small, anchor="mm")
    for row in rows:
        x, y = at(row)
        _marker(draw, x, y, row["model"], COLOURS[row["resolution"]])
        if row["c_t"]:
            draw.text((x, y - 17), f"{row['cells']:.1f}", INK, small, anchor="mm")


def _decades(values: list[float]) -> tuple[float, float]:
    """The axis in powers of ten, with room at both ends."""
    return math.log10(min(values)) - 0.12, math.log10(max(values)) + 0.12


def _span(values: list[float]) -> tuple[float, float]:
    """The foot of the axis and a step of which five hold all values, with room."""
    low, high = min(values) - 0.1, max(values) + 0.1
    for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0):
        foot = math.floor(low / step) * step
        if foot + 5 * step >= high:
            return foot, step
    return 0.0, 20.0


def _marker(draw: ImageDraw.ImageDraw, x: int, y: int, model: str, colour: tuple[int, int, int]) -> None:
    box = x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS
    if model == "M":
        draw.ellipse(box, colour, (255, 255, 255))
    else:
        draw.rectangle(box, colour, (255, 255, 255))
