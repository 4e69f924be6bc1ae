"""The MNIST variants of "Image classification through top-down image pyramid traversal", section 5.1.

Each digit lies at a random place of a black canvas of 56 px (plain), on a random piece of a photograph of grass
(textured), or under salt and pepper (noisy). Everything random is drawn anew at every load, for all images of a batch
at once, on the device that trains.

Where the paper is silent: on grass a pixel is the lighter of digit and grass; the piece of grass has the canvas's size
in the photograph's pixels; coarser images are means.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

Variant = Literal["plain", "textured", "noisy"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

DIGIT = 28
NOISE = 0.1
"""Share of pixels that noise replaces, half by black and half by white."""

TRAINING = 55_000
"""Of the 60,000: the rest is for validation."""


def data_folder() -> Path:
    """``PYRTRAV_DATA``, else ``../shared/data``."""
    return Path(os.environ.get("PYRTRAV_DATA") or "../shared/data")


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


@dataclass(frozen=True)
class Digits:
    """Digits and their labels on a device, and the grass."""

    digits: Tensor
    """(n, 28, 28) uint8."""
    labels: Tensor
    """(n) int64."""
    grass: Tensor
    """(height, width) uint8."""

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self, index: Tensor, variant: Variant, resolution: int, generator: torch.Generator, *, side: int = 56
    ) -> Tensor:
        """Return new images of the digits ``index``: (n, 1, resolution, resolution) in 0..255.

        Args:
            resolution: ``side``, or that divided by a power of two: means.
            generator: of the digits' device.
            side: of the canvas: 56 as in the paper; 112 is "translated MNIST".
        """
        count, device = len(index), self.digits.device
        canvas = self._background(count, variant, side, generator)
        corner = torch.randint(side - DIGIT + 1, (2, count, 1), generator=generator, device=device)
        along = torch.arange(DIGIT, device=device)
        rows, columns = (corner[0] + along)[:, :, None], (corner[1] + along)[:, None, :]
        number = torch.arange(count, device=device)[:, None, None]
        canvas[number, rows, columns] = torch.maximum(canvas[number, rows, columns], self.digits[index])
        if variant == "noisy":
            draw = torch.rand(canvas.shape, generator=generator, device=device)
            canvas[draw < NOISE] = 255
            canvas[draw < NOISE / 2] = 0
        return avg_pool2d(canvas[:, None].float(), side // resolution)

    def _background(self, count: int, variant: Variant, side: int, generator: torch.Generator) -> Tensor:
        device = self.digits.device
        if variant != "textured":
            return torch.zeros(count, side, side, dtype=torch.uint8, device=device)
        along = torch.arange(side, device=device)
        height, width = self.grass.shape
        top = torch.randint(height - side + 1, (count, 1), generator=generator, device=device)
        left = torch.randint(width - side + 1, (count, 1), generator=generator, device=device)
        return self.grass[(top + along)[:, :, None], (left + along)[:, None, :]]


def load_digits(folder: Path, device: str = "cpu") -> tuple[Digits, Digits]:
    """Return the 55,000 training and the 5,000 validation digits.

    Raises:
        FileNotFoundError: the folder has no ``mnist`` or no ``textures``.
    """
    digits = torch.from_numpy(read_idx(folder / "mnist" / "train-images-idx3-ubyte.gz")).to(device)
    labels = torch.from_numpy(read_idx(folder / "mnist" / "train-labels-idx1-ubyte.gz").astype(np.int64)).to(device)
    with Image.open(folder / "textures" / "grass.png") as picture:
        grass = torch.from_numpy(np.array(picture.convert("L"))).to(device)
    return (
        Digits(digits[:TRAINING], labels[:TRAINING], grass),
        Digits(digits[TRAINING:], labels[TRAINING:], grass),
    )
