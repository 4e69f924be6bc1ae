"""The learning curve of a run as a PNG: loss, accuracy and attended cells against epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pyrtrav.explain.lettering import FAINT_INK, INK, PAPER, font
from pyrtrav.files import written_whole

Points = list[tuple[int, float]]

PANELS = {
    "loss": {"training": "loss", "validation": "val_loss"},
    "accuracy": {
        "training": "accuracy",
        "validation": "val_accuracy",
        "validation, balanced": "val_balanced_accuracy",
    },
    "cells attended": {"training": "cells", "validation": "val_cells"},
}
"""Each panel's curves by name, and the metrics that they show."""

COLOURS = {"training": (130, 140, 150), "validation": (20, 90, 170), "validation, balanced": (215, 110, 20)}
RULE, WIDTH, HEIGHT = (226, 226, 226), 760, 270
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 44, 30
INTERVALS = 4


def save_learning_curve(path: Path, reports: Sequence[Mapping[str, Any]], kept: Sequence[int]) -> None:
    """Write the picture of a log.

    Args:
        path: of the PNG.
        reports: lines of ``log.jsonl``, in order.
        kept: places in it, from 0, of the epochs whose weights the stages ended with.
    """
    with written_whole(path) as beside:
        draw_learning_curve(reports, kept).save(beside, format="PNG")


def draw_learning_curve(reports: Sequence[Mapping[str, Any]], kept: Sequence[int]) -> Image.Image:
    """Return one panel for each of `PANELS` that the log has figures for.

    Circles mark what was kept, upright lines the beginning of a stage.
    """
    curves = {
        title: {name: found for name, metric in lines.items() if (found := _points(reports, metric))}
        for title, lines in PANELS.items()
    }
    shown = {title: lines for title, lines in curves.items() if lines}
    image = Image.new("RGB", (WIDTH, HEIGHT * max(len(shown), 1)), PAPER)
    starts = [i for i in range(1, len(reports)) if reports[i]["stage"] != reports[i - 1]["stage"]]
    for number, (title, lines) in enumerate(shown.items()):
        _Panel(ImageDraw.Draw(image), HEIGHT * number, lines, len(reports), title).draw(starts, kept)
    return image


def _points(reports: Sequence[Mapping[str, Any]], metric: str) -> Points:
    return [(i, report["metrics"][metric]) for i, report in enumerate(reports) if metric in report["metrics"]]


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value * (1 - 1e-9))


class _Panel:
    """A frame with its own scale."""

    def __init__(
        self, pen: ImageDraw.ImageDraw, top: int, lines: Mapping[str, Points], epochs: int, title: str
    ) -> None:
        self.pen, self.lines, self.epochs, self.title = pen, lines, epochs, title
        self.top, self.bottom = top + TOP, top + HEIGHT - BOTTOM
        values = [value for points in lines.values() for _, value in points]
        # A share is read against all or nothing, other things against nothing.
        self.high = 1.0 if title == "accuracy" else INTERVALS * _round_up(max([*values, 1e-9]) / INTERVALS)

    def at(self, epoch: int, value: float) -> tuple[float, float]:
        """Picture pixels of a point; epochs count from 0."""
        across = epoch / max(self.epochs - 1, 1)
        up = value / self.high
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.bottom - up * (self.bottom - self.top)

    def draw(self, starts: Sequence[int], kept: Sequence[int]) -> None:
        """Draw rules, curves and names; ``starts`` are the epochs at which a stage begins."""
        for step in range(INTERVALS + 1):
            value = self.high * step / INTERVALS
            y = self.at(0, value)[1]
            self.pen.line((LEFT, y, WIDTH - RIGHT, y), RULE)
            self.pen.text((LEFT - 8, y), f"{value:.3g}", FAINT_INK, font(14), anchor="rm")
        for start in starts:
            x = self.at(start, 0)[0]
            self.pen.line((x, self.top, x, self.bottom), FAINT_INK)
        for epoch, anchor in {self.epochs - 1: "rt", (self.epochs - 1) // 2: "mt", 0: "lt"}.items():
            x = self.at(epoch, 0)[0]
            self.pen.text((x, self.bottom + 6), f"epoch {epoch + 1}", FAINT_INK, font(14), anchor=anchor)
        self._names("o: kept" if kept else "")
        for name, points in self.lines.items():
            self._curve(points, COLOURS[name], kept if name == "validation" else ())

    def _names(self, further: str) -> None:
        x = float(LEFT)
        self.pen.text((x, self.top - 12), self.title, INK, font(17), anchor="ls")
        x += font(17).getlength(self.title) + 24
        for name in self.lines:
            self.pen.line((x, self.top - 17, x + 22, self.top - 17), COLOURS[name], 3)
            self.pen.text((x + 28, self.top - 12), name, INK, font(14), anchor="ls")
            x += 28 + font(14).getlength(name) + 20
        self.pen.text((WIDTH - RIGHT, self.top - 12), further, FAINT_INK, font(14), anchor="rs")

    def _curve(self, points: Points, colour: tuple[int, int, int], kept: Sequence[int]) -> None:
        places = [self.at(*point) for point in points]
        self.pen.line(places, colour, 2, joint="curve")
        for (epoch, _), (x, y) in zip(points, places, strict=True):
            if len(points) == 1:
                self.pen.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
            if epoch in kept:
                self.pen.ellipse((x - 5, y - 5, x + 5, y + 5), None, colour, 2)
