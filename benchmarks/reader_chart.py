"""The readers' speeds as bars, in parts of the limit."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

PANELS = {
    "aligned": "one tile a window",
    "unaligned": "four tiles a window",
    "block": "64 half-overlapping windows",
}
OURS, THEIRS, LIMIT, INK, PALE = (30, 90, 160), (150, 160, 170), (40, 40, 40), (20, 20, 20), (120, 120, 120)
NAME_WIDTH, BAR_WIDTH, END_WIDTH, LINE, MARGIN = 300, 560, 240, 34, 30


def draw_chart(rows: list[dict[str, Any]]) -> Image.Image:
    """Return one panel of bars for each work: one thread, the limit's speed as a line."""
    chosen = {
        work: sorted(
            (row for row in rows if row["work"] == work and row["threads"] == 1 and row.get("of_limit")),
            key=lambda row: -row["of_limit"],
        )
        for work in PANELS
    }
    height = MARGIN + sum(LINE * (len(bars) + 2) for bars in chosen.values())
    image = Image.new("RGB", (2 * MARGIN + NAME_WIDTH + BAR_WIDTH + END_WIDTH, height), "white")
    draw, top = ImageDraw.Draw(image), MARGIN
    for work, bars in chosen.items():
        draw.text((MARGIN, top), f"{work}: {PANELS[work]}", INK, ImageFont.load_default(22))
        _panel(draw, top + LINE, bars)
        top += LINE * (len(bars) + 2)
    return image


def _panel(draw: ImageDraw.ImageDraw, top: int, bars: list[dict[str, Any]]) -> None:
    font, left = ImageFont.load_default(18), MARGIN + NAME_WIDTH
    scale = BAR_WIDTH / max([1.0, *(row["of_limit"] for row in bars)])
    for number, row in enumerate(bars):
        y, end = top + number * LINE, left + round(row["of_limit"] * scale)
        colour = LIMIT if row["reader"] == "limit" else OURS if row["reader"].startswith("pyrtrav") else THEIRS
        draw.text((left - 12, y + LINE // 2), row["reader"], INK, font, anchor="rm")
        draw.rectangle((left, y + 4, end, y + LINE - 4), colour)
        said = f"{row['of_limit']:.2f}   {row['rate']:,.0f}/s"
        draw.text((end + 10, y + LINE // 2), said, INK, font, anchor="lm")
    at = left + round(scale)
    draw.line((at, top, at, top + LINE * len(bars)), PALE, 1)
