"""What the methods are compared on, and with what settings."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks import scenes_arms
from benchmarks.mnist_images import DIGIT, TRAINING, read_idx
from benchmarks.mnist_megapixel import write_pyramid
from benchmarks.scenes_data import convert_all, load_scenes, write_hints, write_manifest
from pyrtrav.files import make_folder, written_whole
from pyrtrav.training.data import Dataset
from pyrtrav.training.hints import Hints, load_hints

SIDE, TILE = 128, 32
"""Of an image of ``digits`` and its tiles, in pixels."""
TRAIN, VALIDATION = 10_000, 1000

FOLD = 0
"""Of the scenes: what is looked at; the others train."""


@dataclass(frozen=True)
class Arm:
    """A method with its settings."""

    method: str
    options: tuple[str, ...]
    epochs: str
    """Of a stage, or of each."""
    hints: bool = False
    """Whether the boxes of the training images teach it where to look."""


@dataclass(frozen=True)
class Task:
    """Images with labels, and what all arms share."""

    prepare: Callable[[Path, Path], Path]
    """From the data and a folder to work in to what `load_dataset` takes."""
    common: tuple[str, ...]
    arms: dict[str, Arm]
    split: str = "val"
    """What is judged; training looks at ``val`` in all tasks."""


def samples(data: Path, work: Path) -> Path:
    """Return the repository's tissue."""
    return Path("sample_data/tissue")


def digits(data: Path, work: Path) -> Path:
    """Write the images where they are not there: black, with one digit of 28 px."""
    manifest = work / "manifest.csv"
    if manifest.exists():
        return manifest
    pixels = read_idx(data / "mnist" / "train-images-idx3-ubyte.gz")
    labels = read_idx(data / "mnist" / "train-labels-idx1-ubyte.gz")
    make_folder(work)
    random = np.random.default_rng(0)
    chosen = [*range(TRAIN), *range(TRAINING, TRAINING + VALIDATION)]
    with written_whole(manifest) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for number in track(chosen, "writing"):
            canvas = np.zeros((SIDE, SIDE), np.uint8)
            y, x = (int(v) for v in random.integers(0, SIDE - DIGIT + 1, 2))
            canvas[y : y + DIGIT, x : x + DIGIT] = pixels[number]
            write_pyramid(work / f"{number:05d}.tif", canvas, TILE)
            table.writerow((f"{number:05d}.tif", int(labels[number]), "train" if number < TRAINING else "val"))
    return manifest


def scenes(data: Path, work: Path) -> Path:
    """Convert the street scenes where that was not done."""
    convert_all(data / "scenes", work, lambda: None)
    return write_manifest(work, load_scenes(data / "scenes"), FOLD)


def scene_hints(data: Path, work: Path, dataset: Dataset) -> Hints:
    """Return the boxes of the signs in the training scenes."""
    return load_hints(write_hints(work, load_scenes(data / "scenes"), FOLD, 1.0), dataset)


def _scene_arms() -> dict[str, Arm]:
    """The settings of `benchmarks.scenes`; `topdown` also with hints.

    Left out is the whole image at 1,024 px, which costs four times what 512 px do.
    """
    arms = {name: Arm(arm.method, arm.options, arm.epochs) for name, arm in scenes_arms.ARMS.items()}
    del arms["fcn-1024"]
    topdown = scenes_arms.ARMS["topdown"]
    hinted = Arm("topdown", (*topdown.options, *scenes_arms.WITH_HINTS), topdown.hint_epochs, hints=True)
    return {"topdown with hints": hinted, **arms}


TASKS = {
    "samples": Task(
        samples,
        (),
        {
            "topdown": Arm("topdown", ("multi_level=true", "level_weights=[0.1,0.3,1.0]"), "100"),
            "mgnet": Arm("mgnet", ("glimpses=6", "least_scale=0.1"), "100"),
            "gfnet": Arm("gfnet", ("looks=6", "halvings=2", "lr=[2e-3,2e-3,5e-4,5e-4]"), "[5,60,25,10]"),
            "fcn-64": Arm("fcn", ("halvings=0",), "100"),
            "fcn-128": Arm("fcn", ("halvings=1",), "100"),
            "fcn-256": Arm("fcn", ("halvings=2",), "100"),
            "mil": Arm("mil", ("depth=2",), "100"),
        },
    ),
    "digits": Task(
        digits,
        ("widths=[16,32,64,128]", "base_resolution=32", "turn=false", "batch_size=32"),
        {
            "topdown": Arm(
                "topdown",
                ("max_depth=2", "gradual=true", "multi_level=true", "level_weights=[0.1,0.3,1.0]", "c_t=[2.5,5]"),
                "[4,8]",
            ),
            "mgnet": Arm("mgnet", ("glimpses=4", "least_scale=0.2"), "12"),
            "gfnet": Arm("gfnet", ("looks=4", "halvings=2", "lr=[2e-3,2e-3,5e-4,5e-4]"), "[1,6,3,2]"),
            "fcn-32": Arm("fcn", ("halvings=0",), "12"),
            "fcn-64": Arm("fcn", ("halvings=1",), "12"),
            "fcn-128": Arm("fcn", ("halvings=2",), "12"),
            "mil": Arm("mil", ("depth=2",), "12"),
        },
    ),
    "scenes": Task(scenes, (*scenes_arms.COMMON, "precision=bfloat16"), _scene_arms(), "test"),
}
