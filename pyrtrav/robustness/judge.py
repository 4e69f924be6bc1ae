"""What a model believes of images in memory: the same looks as at files, and the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Region
from pyrtrav.methods import Model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import Pyramid
from pyrtrav.sampling import Image
from pyrtrav.selection import Settings
from pyrtrav.tensor_image import InMemory, TensorImage

MOST_PIXELS = 1 << 22
"""Pixels of an image that is taken whole without being asked to: 2,048 x 2,048."""


@dataclass(frozen=True)
class Loaded:
    """An image in memory, in the model's colours."""

    path: str
    pixels: NDArray[np.uint8]
    """(height, width, channels)."""
    background: tuple[int, ...]
    mpp: float | None
    reduced: bool
    """A copy of fewer pixels than the file has."""

    def image(self, pixels: NDArray[np.uint8]) -> InMemory:
        """Return an image like this one, of other pixels."""
        return InMemory(pixels, path=self.path, background=self.background, mpp=self.mpp)

    def tensor(self, device: torch.device) -> Tensor:
        """Return the pixels as (channels, height, width), floats in 0..255."""
        return torch.from_numpy(self.pixels).permute(2, 0, 1).to(device, torch.float32)

    def tensor_image(self, pixels: Tensor, *, rounded: bool) -> TensorImage:
        """Return an image like this one whose pixels carry a gradient."""
        return TensorImage(pixels, path=self.path, background=self.background, mpp=self.mpp, rounded=rounded)


def working_size(image: Pyramid, side: int | None) -> tuple[int, int]:
    """Return width and height in pixels of the copy of an image in memory.

    Args:
        side: the longer side at most; None takes images whole, and none that is large.

    Raises:
        ConfigError: the image is too large to be taken whole.
    """
    width, height = round(image.bounds.width), round(image.bounds.height)
    if side is None:
        if width * height > MOST_PIXELS:
            raise ConfigError(
                f"{image.path}: {width:,} x {height:,} pixels are too many to be changed as a whole (at most "
                f"{MOST_PIXELS:,}); with --side 2048 a copy is judged whose longer side has 2,048"
            )
        return width, height
    share = min(1.0, side / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def load(predictor: Predictor, path: str, side: int | None, mpp: float | None = None) -> Loaded:
    """Read an image whole, or as a copy of that side by the mean over areas, as everything is read.

    Raises:
        PyramidError: it cannot be opened or read.
        ConfigError: it is too large to be taken whole.
    """
    with predictor.open(path, mpp=mpp) as image:
        bounds = image.bounds
        size = working_size(image, side)
        pixels = image.read(Region(bounds.x, bounds.y, bounds.width, bounds.height), size).pixels
        reduced = size != (round(bounds.width), round(bounds.height))
        scale = bounds.width / size[0]
        return Loaded(path, pixels, image.background, image.mpp and image.mpp * scale, reduced)


def logits_of(model: Model, images: Sequence[Image], settings: Settings) -> Tensor:
    """Return what a model believes of images in the end (image, class), with the draws that `predict` takes."""
    generators = [torch.Generator().manual_seed(settings.seed) for _ in images]
    trace = model.look(images, settings, generators)
    depths = np.array([model.depth_of(image, settings) for image in images])
    found: list[Tensor] = [torch.empty(0)] * len(images)
    for depth in np.unique(depths).tolist():
        logits = model.believe(trace, depth)
        for number in np.flatnonzero(depths == depth).tolist():
            found[number] = logits[number]
    return torch.stack(found)
