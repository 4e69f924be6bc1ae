"""Examples as in figures 4 and 5 of the multigrid paper: a line for each scene, a column for each network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.pixel_scenes import CLASSES, SIDE, TASKS, draw_scenes, load_digit_sets
from pyrtrav.encoders.multigrid import PIXEL_NETWORKS, build_pixel_network

ZOOM, GAP, MARGIN, HEADING = 2, 6, 20, 26
INK = (20, 20, 20)

COLOURS = torch.tensor(
    [
        (230, 25, 75), (60, 180, 75), (255, 225, 25), (67, 99, 216), (245, 130, 49),
        (145, 30, 180), (66, 212, 244), (240, 50, 230), (191, 239, 69), (255, 255, 255),
    ],
    dtype=torch.float32,
)  # fmt: skip
"""Of the digits 0 to 9; on black."""


def paint(outputs: Tensor) -> np.ndarray:
    """Return one scene's outputs (output, row, column) in 0..1 as RGB (row, column, 3).

    One output is a grey value. Of ten, those of a half or more are shown in their colours, mixed where several are.
    """
    if len(outputs) == 1:
        return (outputs[0, :, :, None] * 255).round().byte().expand(-1, -1, 3).numpy()
    labels = (outputs >= 0.5).float()
    mixed = torch.einsum("oyx,oc->yxc", labels, COLOURS) / labels.sum(0).clamp(min=1)[:, :, None]
    return mixed.round().byte().numpy()


def draw_examples(rows: Sequence[dict[str, Any]], data: Path, examples: int) -> Image.Image:
    """Return the picture of all tasks: the first test scenes, their targets, and what trained networks say.

    Args:
        rows: results, with the path of their ``weights``; of several of a network the first is shown.
        data: with MNIST.
    """
    _, digits = load_digit_sets(data)
    panels = []
    for task in TASKS:
        own = [row for row in rows if row["task"] == task]
        if not own:
            continue
        scenes = draw_scenes(TASKS[task], digits, own[0]["schedule"]["test_scenes"], 1)
        images, targets = scenes.batch(torch.arange(min(examples, len(scenes))))
        columns = {"input": images, "target": targets}
        weights = {row["network"]: row["weights"] for row in reversed(own)}
        for network in sorted(weights, key=list(PIXEL_NETWORKS).index):
            columns[network] = _outputs(network, weights[network], images, TASKS[task].outputs)
        panels.append(_panel(task, columns))
    whole = Image.new("RGB", (max(panel.width for panel in panels), sum(panel.height for panel in panels)), "white")
    top = 0
    for panel in panels:
        whole.paste(panel, (0, top))
        top += panel.height
    return whole


@torch.inference_mode()
def _outputs(network: str, weights: Path, images: Tensor, outputs: int) -> Tensor:
    model = build_pixel_network(network, outputs=outputs)
    model.load_state_dict(safetensors.torch.load_file(weights))
    found: Tensor = model.eval()(images).sigmoid()
    return found


def _panel(task: str, columns: dict[str, Tensor]) -> Image.Image:
    side = ZOOM * SIDE
    lines = len(next(iter(columns.values())))
    width = 2 * MARGIN + len(columns) * (side + GAP) - GAP
    panel = Image.new("RGB", (width, 2 * HEADING + lines * (side + GAP) + MARGIN), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(15)
    draw.text((MARGIN, HEADING // 2), task, INK, ImageFont.load_default(18), anchor="lm")
    if TASKS[task].segments:
        for digit in range(CLASSES):
            left = width - MARGIN - (CLASSES - digit) * 18
            draw.rectangle((left, 5, left + 16, 21), tuple(COLOURS[digit].int().tolist()), INK)
            draw.text((left + 8, 13), str(digit), INK, font, anchor="mm")
    for column, (name, scenes) in enumerate(columns.items()):
        left = MARGIN + column * (side + GAP)
        draw.text((left + side // 2, HEADING + HEADING // 2), name, INK, font, anchor="mm")
        for line, scene in enumerate(scenes):
            tile = Image.fromarray(paint(scene)).resize((side, side), Image.Resampling.NEAREST)
            panel.paste(tile, (left, 2 * HEADING + line * (side + GAP)))
    return panel
