"""The colours in which a model sees images: for each image an affine map, the same for all of its patches.

All patches of a batch are painted at once, on their device, whatever image each is of. What an image is painted with
depends on that image alone, never on its patch's content or on what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.selection import Ints

DARKEST = 1 / 255
"""Transmitted light below which optical density is not believed: the least that 8 bits can tell from none."""

Map = NDArray[np.float64]
"""An affine map of colours (channels, channels + 1): a matrix, and in the last column what is added."""


@dataclass(frozen=True, eq=False)
class Colours:
    """How the colours of one image are changed; None leaves them."""

    density: Map | None = None
    """Of optical densities, the natural logarithm of 1 / value: how much of each dye there is."""
    value: Map | None = None
    """Of values in 0..1, afterwards."""


class Palette:
    """The colours of a batch's images, ready for any of their patches."""

    def __init__(self, images: Sequence[object]) -> None:
        """Images may carry ``colours``; those that do not are shown as they are."""
        colours: list[Colours] = [getattr(image, "colours", None) or Colours() for image in images]
        self._density = _stacked([own.density for own in colours])
        self._value = _stacked([own.value for own in colours])

    def __call__(
        self, patches: Shaped[Tensor, "fixation channels height width"], image: Ints, dtype: torch.dtype
    ) -> Shaped[Tensor, "fixation channels height width"]:
        """Return the patches (fixation axis, ``image`` beside it) as a model sees them, in 0..1.

        Bytes stay bytes where nothing is changed: a quarter of the memory.
        """
        if self._density is None and self._value is None:
            return patches if patches.dtype == torch.uint8 else patches.to(dtype)
        pixels = patches.to(dtype)
        if patches.dtype == torch.uint8:
            pixels.div_(255)
        index = torch.from_numpy(image)
        flat = pixels.flatten(2)  # (fixation, channels, pixel)
        if self._density is not None:
            map_ = self._density[index].to(patches.device, dtype)
            # What is transmitted is multiplied by the change, so that no change is exactly none.
            change = map_[..., :-1] - torch.eye(flat.shape[1], dtype=dtype, device=patches.device)
            density = flat.clamp(min=DARKEST).log_().neg_()
            flat = flat * torch.baddbmm(map_[..., -1:], change, density).neg_().exp_()
            flat.clamp_(max=1)
        if self._value is not None:
            map_ = self._value[index].to(patches.device, dtype)
            flat = torch.baddbmm(map_[..., -1:], map_[..., :-1], flat).clamp_(0, 1)
        return flat.view(pixels.shape)


def _stacked(maps: Sequence[Map | None]) -> Tensor | None:
    """(image, channels, channels + 1) with the identity where an image has none; None where no image has one."""
    given = next((map_ for map_ in maps if map_ is not None), None)
    if given is None:
        return None
    same = np.eye(*given.shape)
    return torch.from_numpy(np.stack([same if map_ is None else map_ for map_ in maps]))
