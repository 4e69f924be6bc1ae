"""A data folder of small images for tests that train."""

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = ["base_resolution=16", "widths=[4,8]", "max_depth=1", "c_t=3", "batch_size=4", "epochs=3", "validate_every=2"]
"""Options of a training that takes a second."""


def make_images(root: Path) -> Path:
    """Twelve images of two classes that differ in brightness: four and two of each for training and validation."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, shade in (("dark", 60), ("light", 190)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(shade - 40, shade + 40, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root
