"""Megapixel MNIST as a folder of slides: a few digits and many distractors on a large black canvas.

    python -m benchmarks.mnist_megapixel OUT --images 1000 --side 1500

After "Processing megapixel images with deep attention-sampling models" (Katharopoulos and Fleuret 2019, section 4.2):
five digits of 28 px, three of them of the class that is the label, and 50 distractors, each a pattern of lines. Any
side from 256 to 10,000 px; the number of distractors grows with the area, so that they stay as dense. Writes one
pyramidal TIFF an image (tiles of 256 px, deflate, levels of half the size) and ``manifest.csv`` with path, label and
split, which ``pyrtrav train --data`` takes; the last fifth is for validation. Same seed, same images.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.mnist_images import DIGIT, TRAINING, data_folder, read_idx
from pyrtrav.files import make_folder, written_whole

Pixels = NDArray[np.uint8]

DIGITS, SAME = 5, 3
DISTRACTORS, DISTRACTORS_SIDE = 50, 1500
_LINES = 10


def draw_image(side: int, label: int, digits: Pixels, labels: NDArray[np.int64], random: np.random.Generator) -> Pixels:
    """Return one canvas (side, side): no two things on it touch."""
    canvas = np.zeros((side, side), np.uint8)
    others = np.flatnonzero(labels != label)
    # No other class may reach the label's number.
    strangers = [int(i) for i in random.permutation(others)]
    chosen = [int(i) for i in random.choice(np.flatnonzero(labels == label), SAME, replace=False)]
    seen: set[int] = set()
    for i in strangers:
        if len(chosen) < DIGITS and int(labels[i]) not in seen:
            seen.add(int(labels[i]))
            chosen.append(i)
    count = round(DISTRACTORS * (side / DISTRACTORS_SIDE) ** 2)
    things = [digits[i] for i in chosen] + [_lines(random) for _ in range(count)]
    slots = side // DIGIT  # a place each on a lattice, moved within what it leaves
    places = random.choice(slots * slots, len(things), replace=False)
    slack = side - slots * DIGIT
    left, top = random.integers(0, slack + 1, 2)
    for thing, place in zip(things, places.tolist(), strict=True):
        row, column = divmod(place, slots)
        y, x = int(top) + row * DIGIT, int(left) + column * DIGIT
        canvas[y : y + DIGIT, x : x + DIGIT] = thing
    return canvas


def _lines(random: np.random.Generator) -> Pixels:
    """A distractor: short strokes as bright as a digit's."""
    pattern = np.zeros((DIGIT, DIGIT), np.uint8)
    for _ in range(_LINES // 2):
        start, angle, length = random.uniform(4, DIGIT - 4, 2), random.uniform(0, np.pi), random.uniform(4, 10)
        along = np.linspace(-length / 2, length / 2, 24)
        ys = np.clip(np.rint(start[0] + along * np.sin(angle)), 0, DIGIT - 1).astype(int)
        xs = np.clip(np.rint(start[1] + along * np.cos(angle)), 0, DIGIT - 1).astype(int)
        pattern[ys, xs] = 255
    return pattern


def write_pyramid(path: Path, pixels: Pixels, tile: int = 256) -> None:
    """Write a tiled TIFF with levels of half the size down to that of a tile."""
    with written_whole(path) as beside, tifffile.TiffWriter(beside) as tif:
        level, reduced = pixels, 0
        while True:
            tif.write(level, tile=(tile, tile), compression="zlib", photometric="minisblack", subfiletype=reduced)
            if min(level.shape) // 2 < tile:
                return
            height, width = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
            blocks = level[:height, :width].reshape(height // 2, 2, width // 2, 2).astype(np.uint16)
            level, reduced = ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8), 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=data_folder())
    asked = parser.parse_args()
    if not 256 <= asked.side <= 10_000:
        parser.error("--side: from 256 to 10,000 px")
    digits = read_idx(asked.data / "mnist" / "train-images-idx3-ubyte.gz")
    labels = read_idx(asked.data / "mnist" / "train-labels-idx1-ubyte.gz").astype(np.int64)
    make_folder(asked.out)
    first_validation = asked.images - asked.images // 5
    with written_whole(asked.out / "manifest.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for number in track(range(asked.images), "writing"):
            random = np.random.default_rng([asked.seed, number])
            label, is_training = number % 10, number < first_validation
            own = slice(0, TRAINING) if is_training else slice(TRAINING, None)
            name = f"{number:05d}.tif"
            write_pyramid(asked.out / name, draw_image(asked.side, label, digits[own], labels[own], random))
            table.writerow((name, label, "train" if is_training else "val"))


if __name__ == "__main__":
    main()
